import dataclasses
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support import card_manifests as cards
from support import drift_reports
from support.card_reading import data_of, shown_text

from tightfit.calib.locate import locate_model
from tightfit.calib.models import MODELS
from tightfit.drift.gate import Outcome
from tightfit.export.manifest import (
    ExpertsRecord,
    ImatrixRecord,
    Manifest,
    hash_file,
)
from tightfit.publish.card.card import make_card

COMBINATIONS = [
    ("gguf",),
    ("split",),
    ("onnx",),
    ("js",),
    ("tensorrt",),
    ("gptq",),
    ("awq",),
    ("compressed-tensors",),
    ("modelopt",),
    ("gptq", "awq"),
    ("gguf", "onnx", "gptq"),
    ("gguf", "onnx", "tensorrt", "gptq", "awq", "compressed-tensors", "modelopt"),
]


def with_input(manifest: Manifest, **fields: object) -> Manifest:
    return dataclasses.replace(manifest, input=dataclasses.replace(manifest.input, **fields))


@pytest.mark.parametrize("kinds", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("measured", [False, True])
def test_every_combination_is_a_card_with_valid_metadata(
    tmp_path: Path, kinds: tuple[str, ...], measured: bool
) -> None:
    report = cards.math_report() if measured else None
    manifest = cards.manifest(tmp_path, kinds, report=report)
    card = make_card(manifest, tmp_path, cards.REPO)
    data = data_of(card)
    assert data["base_model"] == cards.QWEN
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "mit"
    assert data["pipeline_tag"] == "text-generation"
    assert data["quantized_by"] == "someone"
    assert ("model-index" in ModelCard(card).content) == measured
    formats = [made.format for made in manifest.artifacts]
    assert {"tightfit", "rtx3060-8gb", *formats} <= set(data["tags"])
    headings = re.findall(r"^#+ .*", ModelCard(card).text, re.MULTILINE)
    assert len(set(headings)) == len(headings)
    for required in ("Files", "What it lost", "How it was checked", "How to run it", "Licence"):
        assert f"## {required}" in headings
    assert "None" not in shown_text(card)
    assert "\n\n\n" not in card


@pytest.mark.parametrize(
    ("kinds", "library"),
    [
        (("gguf",), None),
        (("onnx",), None),
        (("tensorrt",), None),
        (("js",), "transformers.js"),
        (("gptq",), "transformers"),
        (("gguf", "compressed-tensors"), "transformers"),
        (("js", "awq"), "transformers"),
        # No library of that name loads these from the root.
        (("modelopt",), None),
        (("gptq", "awq"), None),
    ],
)
def test_a_library_is_named_where_it_loads_the_repository(
    tmp_path: Path, kinds: tuple[str, ...], library: str | None
) -> None:
    card = make_card(cards.manifest(tmp_path, kinds), tmp_path, cards.REPO)
    assert data_of(card).get("library_name") == library


@pytest.mark.parametrize(
    ("kinds", "tag"),
    [(("gptq",), "4-bit"), (("compressed-tensors",), "fp8"), (("onnx",), "4-bit")],
)
def test_one_grid_gives_a_tag_of_its_bits(tmp_path: Path, kinds: tuple[str, ...], tag: str) -> None:
    manifest = cards.manifest(tmp_path, kinds)
    assert tag in data_of(make_card(manifest, tmp_path, cards.REPO))["tags"]
    (made,) = manifest.artifacts
    other = dataclasses.replace(made.tensors[0], grid="int8-g128-sym")
    mixed = manifest.with_artifact(dataclasses.replace(made, tensors=(*made.tensors, other)))
    assert tag not in data_of(make_card(mixed, tmp_path, cards.REPO))["tags"]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_licence_is_that_of_the_base(tmp_path: Path, model) -> None:
    manifest = cards.manifest(tmp_path, model=model.id)
    card = make_card(manifest, tmp_path, cards.REPO)
    expected = {"Llama-8B": "llama3.1", "Llama-70B": "llama3.3"}
    end = model.id.partition("Distill-")[2]
    assert data_of(card)["license"] == expected.get(end, "mit")
    assert ("Built with Llama" in card) == (end in expected)
    assert ("is licensed under the Llama" in card) == (end in expected)
    assert (model.base_model in card) == bool(model.base_terms)


def test_an_unknown_model_declares_no_licence(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model="someone/finetune")
    card = make_card(manifest, tmp_path, cards.REPO)
    assert data_of(card)["base_model"] == "someone/finetune"
    assert "license" not in data_of(card)
    assert "The licence is that of the original: see" in card
    assert "DeepSeek advises" not in card


def test_a_folder_is_no_base_model(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model="my-model", revision=None)
    card = make_card(manifest, tmp_path, cards.REPO)
    assert not {"base_model", "base_model_relation", "license"} & data_of(card).keys()
    assert "huggingface.co/my-model" not in card


def test_the_embedded_model_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model="tiny-r1", revision=None)
    assert "license" not in data_of(make_card(manifest, tmp_path, cards.REPO))
    weights = hash_file(locate_model(None).path / "model.safetensors")
    card = make_card(with_input(manifest, files=(weights,)), tmp_path, cards.REPO)
    assert data_of(card)["license"] == "mit"
    assert "small-number arithmetic" in card


def test_results_on_a_public_benchmark_are_in_the_metadata_with_their_subset(
    tmp_path: Path,
) -> None:
    manifest = cards.manifest(tmp_path, ("gguf", "onnx"), report=cards.math_report())
    results = ModelCard(make_card(manifest, tmp_path, cards.REPO)).data.eval_results
    assert [result.metric_value for result in results] == [90.62, 90.62]  # 58 of 64
    for result in results:
        assert result.dataset_type == "HuggingFaceH4/MATH-500"
        assert (result.task_type, result.metric_type) == ("text-generation", "accuracy")
        assert "math500:n=64,level=4-5,seed=3 (n=64)" in result.metric_name
        assert "interval 81.0 to 95.6" in result.metric_name


@pytest.mark.parametrize("subset", ["embedded", "embedded:n=60", "/home/me/secret/mine.jsonl:n=4"])
def test_own_problems_are_no_public_result(tmp_path: Path, subset: str) -> None:
    manifest = cards.manifest(tmp_path, report=cards.math_report(subset))
    card = make_card(manifest, tmp_path, cards.REPO)
    assert ModelCard(card).data.eval_results is None
    assert "secret" not in card
    assert subset.rpartition("/")[2] in card


def test_drift_of_another_file_is_not_shown(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, report=cards.math_report())
    (made,) = manifest.artifacts
    changed = (dataclasses.replace(made.files[0], sha256="77" * 32),)
    stale = manifest.with_artifact(dataclasses.replace(made, files=changed))
    card = make_card(stale, tmp_path, cards.REPO)
    assert "Measured on an earlier file, so not shown: GGUF." in card
    assert "KL divergence" not in card
    assert ModelCard(card).data.eval_results is None


def test_what_was_not_verified_stands_at_the_top(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path)
    (made,) = manifest.artifacts
    bare = manifest.with_artifact(dataclasses.replace(made, verification=None))
    problems = ("gguf was never verified", "the drift of gguf is of another file")
    card = make_card(bare, tmp_path, cards.REPO, unverified=problems)
    top = shown_text(card.partition("## Files")[0])
    assert all(problem in top for problem in problems)
    assert "not verified after it was written" in card
    assert "allow-unverified" not in make_card(manifest, tmp_path, cards.REPO)


def test_failures_are_told(tmp_path: Path) -> None:
    report = drift_reports.report(Outcome.FAIL)
    manifest = cards.manifest(tmp_path, report=report)
    (made,) = manifest.artifacts
    failed = cards.verification(exact=338, passed=False)
    card = make_card(
        manifest.with_artifact(dataclasses.replace(made, verification=failed)),
        tmp_path,
        cards.REPO,
    )
    assert "| gate |   | fail |" in card
    assert report.decision.findings[0].reason in shown_text(card)
    assert "338 of 339 tensors" in card
    assert "outside its bounds" in card


def test_reports_taken_differently_are_not_in_one_table(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, ("gguf", "onnx"), report=cards.math_report())
    card = make_card(manifest, tmp_path, cards.REPO)
    assert card.count("| perplexity |") == 1
    # What llama.cpp does to the original says nothing of onnxruntime.
    assert "| of it llama.cpp's arithmetic |   | 4.0e-05 (3.2e-05 to 4.8e-05) | - |" in card
    other = cards.artifact("onnx", report=cards.math_report("math500:n=65"))
    card = make_card(manifest.with_artifact(other), tmp_path, cards.REPO)
    assert card.count("| perplexity |") == 2


def test_an_engine_that_ran_says_where(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, ("tensorrt",))
    card = make_card(manifest, tmp_path, cards.REPO)
    assert "It has never run" in card
    (made,) = manifest.artifacts
    ran = dataclasses.replace(
        made.engines[0],
        executed=True,
        device="NVIDIA GeForce RTX 3060",
        relative_difference=0.00317,
        tokens_per_s=83.4,
    )
    card = make_card(
        manifest.with_artifact(dataclasses.replace(made, engines=(ran,))), tmp_path, cards.REPO
    )
    assert "It ran on NVIDIA GeForce RTX 3060, its logits 0.00317" in card
    assert "83.4 tokens/s" in card
    assert "never run" not in card
    assert "has not been run" not in card


def test_experts_get_a_sentence(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path)
    (made,) = manifest.artifacts
    layers = tuple(
        ExpertsRecord(layer=layer, tokens=(311 + layer, 23 + layer), own_share=(1.0, 0.2))
        for layer in (3, 4, 5)
    )
    card = make_card(
        manifest.with_artifact(dataclasses.replace(made, experts=layers)), tmp_path, cards.REPO
    )
    assert "6 routed experts in 3 layers" in card
    assert "saw 26 tokens" in card


def test_an_importance_matrix_takes_the_place_of_the_calibration(tmp_path: Path) -> None:
    record = ImatrixRecord(
        name="imatrix.gguf", sha256="9c" * 32, datasets=("wiki.txt",), entries=197, chunks=31
    )
    manifest = dataclasses.replace(cards.manifest(tmp_path), calibration=None, imatrix=record)
    card = make_card(manifest, tmp_path, cards.REPO)
    assert "computed on wiki.txt" in card
    bare = dataclasses.replace(manifest, imatrix=None)
    assert "No calibration." in make_card(bare, tmp_path, cards.REPO)


@pytest.mark.parametrize(
    ("source", "own"), [("embedded", False), ("self:n=64", False), ("traces.jsonl", True)]
)
def test_a_calibration_that_nobody_else_has_says_so(tmp_path: Path, source: str, own: bool) -> None:
    manifest = cards.manifest(tmp_path)
    assert manifest.calibration is not None
    used = dataclasses.replace(manifest.calibration, source=source)
    card = make_card(dataclasses.replace(manifest, calibration=used), tmp_path, cards.REPO)
    assert ("not published here" in card) == own
