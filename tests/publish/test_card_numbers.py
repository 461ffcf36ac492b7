"""Every number that a reader of the card sees stands in the manifest, or in a file it lists."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from support import card_manifests as cards
from support import drift_reports

from tightfit.drift.gate import Outcome
from tightfit.export.manifest import ExpertsRecord, Manifest
from tightfit.publish.card.card import make_card
from tightfit.targets.profile import load_target

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
UNITS = {"KiB": 2.0**-10, "MiB": 2.0**-20, "GiB": 2.0**-30, "%": 100.0}
OWN = {"90"}
"""The level of the intervals."""


def prose(card: str) -> str:
    """What is no code: paragraphs, tables, lists, without inline code."""
    parts = []
    for token in MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text):
        for child in token.children or []:
            parts.append("\n" if child.type == "softbreak" else child.content)
            if child.type == "code_inline":
                parts.pop()
        parts.append("\n")
    return " ".join(parts)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        yield len(value)
        for item in value:
            yield from leaves(item)
    else:
        yield value


def known_values(manifest: Manifest, folder: Path) -> tuple[list[float], str]:
    """All numbers, with the sums that a table has a right to, and all text."""
    found = list(leaves(dataclasses.asdict(manifest)))
    for record in manifest.companions:
        found += leaves(json.loads((folder / record.name).read_text()))
    numbers = [float(each) for each in found if isinstance(each, int | float)]
    for made in manifest.artifacts:
        numbers.append(float(sum(record.size_bytes for record in made.files)))
        numbers.append(float(len(made.files) - max(1, len(made.engines))))
        visits = [tokens for record in made.experts for tokens in record.tokens]
        numbers += [float(len(visits)), float(min(visits, default=0)), float(visits.count(0))]
    text = " ".join(each for each in found if isinstance(each, str))
    return numbers, f"{text} {cards.REPO} {load_target(manifest.target).description}"


def unfounded(card: str, manifest: Manifest, folder: Path) -> list[str]:
    """Numbers of the card that nothing in the manifest rounds to."""
    numbers, text = known_values(manifest, folder)
    words = set(NUMBER.findall(text))
    shown = prose(card)
    missing = []
    for found in NUMBER.finditer(shown):
        token = found[0]
        unit = re.match(r"\s?(KiB|MiB|GiB|%)", shown[found.end() :])
        factors = {UNITS[unit[1]]} if unit else {1.0, 100.0}
        if token in words or token in OWN:
            continue
        digits, _, power = token.replace(",", "").partition("e")
        decimals = len(digits.partition(".")[2])
        half = 0.5000001 * 10.0 ** (int(power or 0) - decimals)
        value = float(token.replace(",", ""))
        if not any(abs(each * factor - value) <= half for each in numbers for factor in factors):
            missing.append(token)
    return missing


def full_manifest(folder: Path) -> Manifest:
    kinds = ("gguf", "onnx", "tensorrt", "gptq", "compressed-tensors")
    manifest = cards.manifest(folder, kinds, report=cards.math_report())
    layers = tuple(
        ExpertsRecord(layer=layer, tokens=(311 + layer, 29 * layer), own_share=(1.0, 0.2))
        for layer in (3, 4, 7)
    )
    first = dataclasses.replace(manifest.artifacts[0], experts=layers)
    return manifest.with_artifact(first)


def test_every_number_is_the_manifests(tmp_path: Path) -> None:
    manifest = full_manifest(tmp_path)
    card = make_card(manifest, tmp_path, cards.REPO)
    assert len(NUMBER.findall(prose(card))) > 150
    assert unfounded(card, manifest, tmp_path) == []


@pytest.mark.parametrize("outcome", Outcome)
def test_so_they_are_whatever_the_outcome(tmp_path: Path, outcome: Outcome) -> None:
    manifest = cards.manifest(tmp_path, report=drift_reports.report(outcome))
    card = make_card(manifest, tmp_path, cards.REPO)
    assert unfounded(card, manifest, tmp_path) == []


def test_a_figure_from_elsewhere_is_noticed(tmp_path: Path) -> None:
    """Of another manifest, and with one digit changed."""
    manifest = full_manifest(tmp_path)
    card = make_card(manifest, tmp_path, cards.REPO)
    for true, false in (
        ("1.3190", "1.3191"),
        ("4.0e-03", "7.0e-03"),
        ("90.6%", "90.9%"),
        ("+3.12", "+3.15"),
        ("52000 tokens", "52001 tokens"),
        ("0.00972", "0.00973"),
        ("6.83 GiB", "6.84 GiB"),
        ("8192", "8193"),
    ):
        assert true in card
        assert unfounded(card.replace(true, false), manifest, tmp_path) != []
