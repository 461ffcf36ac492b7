"""Plans of DeepSeek-R1 with the schemes for a mixture of experts."""

import re
from pathlib import Path

import pytest

from tightfit.calib.models import find_model
from tightfit.errors import DoesNotFitError
from tightfit.targets.plan import Plan, make_plan
from tightfit.targets.profile import load_target
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES
from tightfit.targets.schemes.mixtures import LISTED_MIXTURES

_QUANT_LABEL = re.compile(
    "|".join(sorted((kind.label for kind in FILE_TYPES.values()), key=len, reverse=True))
)
"""What the Hub looks for in a file's name; it takes the last one."""


def plan(model: str, target: str, **options: object) -> Plan:
    known = find_model(model)
    assert known is not None
    return make_plan(known.dimensions, load_target(target), model=model, **options)  # type: ignore[arg-type]


def fitting(made: Plan) -> list[str]:
    return [item.scheme for item in made.candidates if item.scheme in LISTED_MIXTURES and item.fits]


def test_listed_where_the_model_has_experts() -> None:
    assert fitting(plan("r1", "a100x8-80gb")) == list(LISTED_MIXTURES)
    assert fitting(plan("r1", "a100x4-80gb")) == ["dynamic-q3_k", "dynamic-q2_k"]
    listed = {item.scheme for item in plan("r1-distill-qwen-1.5b", "cpu-16gb").candidates}
    assert not listed & set(LISTED_MIXTURES)


@pytest.mark.parametrize(
    ("scheme", "nearest", "label"),
    [
        ("experts-q6_k", "q6_k", "experts-Q6_K"),
        ("experts-q4_k", "q4_k_s", "experts-Q4_K_S"),
        ("dynamic-q3_k", "q3_k_s", "dynamic-Q3_K_S"),
        ("dynamic-q2_k", "q2_k", "dynamic-Q2_K"),
        ("q4_k_m", "q4_k_m", "Q4_K_M"),
        ("auto", "q8_0", "auto-Q8_0"),
        ("gptq-int4-g128", None, None),
    ],
)
def test_names_that_the_hub_reads(scheme: str, nearest: str | None, label: str | None) -> None:
    made = plan("r1", "a100x8-80gb", scheme=scheme)
    assert made.chosen.scheme == scheme
    assert made.chosen.fits
    assert (made.nearest, made.file_label) == (nearest, label)
    if nearest is not None:
        assert _QUANT_LABEL.findall(f"DeepSeek-R1-{label}.gguf".upper())[-1] == nearest.upper()


def test_asked_for_and_too_large_names_one_that_fits() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1", "a100x4-80gb", scheme="experts-q4_k")
    named = re.findall(r"--scheme ([\w-]+)", caught.value.hint)
    assert "auto" in named
    assert all(plan("r1", "a100x4-80gb", scheme=scheme) for scheme in named)


def test_experts_first_loses_less_than_a_file_type_of_the_same_size() -> None:
    made = plan("r1", "a100x8-80gb")
    by_name = {item.scheme: item for item in made.candidates}
    assert by_name["experts-q4_k"].file_bytes < by_name["q4_k_m"].file_bytes
    assert by_name["experts-q4_k"].predicted_nats < by_name["q4_k_m"].predicted_nats
    assert by_name["dynamic-q3_k"].predicted_nats < by_name["q3_k_m"].predicted_nats


def test_the_table_of_the_documents() -> None:
    by_name = {item.scheme: item for item in plan("r1", "a100x8-80gb").candidates}
    rows = re.findall(
        r"^\| `([\w-]+)` \|.*\| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|$",
        (Path(__file__).parents[2] / "docs" / "targets.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == list(LISTED_MIXTURES)
    for scheme, bits, n_bytes, gib in rows:
        item = by_name[scheme]
        assert f"{item.bits_per_weight:.3f}" == bits
        assert f"{item.file_bytes:,}" == n_bytes
        assert f"{item.file_bytes / 2**30:.1f}" == gib
