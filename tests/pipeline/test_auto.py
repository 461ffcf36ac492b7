"""`--scheme auto` from the plan to the file: losses measured, bytes spent, nothing exceeded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tightfit.errors import ArtifactError, UsageError
from tightfit.export.manifest import Artifact, read_manifest
from tightfit.pipeline import export as export_module
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.verify.run import run_verify

Build = Callable[..., ExportRequest]
BPW = 5.0


@pytest.fixture
def auto(request_for: Build) -> Build:
    """An export of the small Qwen2 in five bits a weight, changed as the test says."""

    def build(**changes: object) -> ExportRequest:
        usual = {"scheme": "auto", "budget": Budget(bits_per_weight=BPW)}
        return request_for(**usual | changes)

    return build


def artifacts(request: ExportRequest) -> dict[str, Artifact]:
    manifest = run_export(request, SilentReporter()).manifest
    assert manifest is not None
    return {artifact.format: artifact for artifact in manifest.artifacts}


def test_a_mix_of_each_format_spends_its_budget_and_verifies(auto: Build) -> None:
    request = auto(formats=("gguf", "onnx"))

    made = artifacts(request)

    for artifact in made.values():
        assert 0.99 * BPW <= artifact.bits_per_weight <= BPW
        assert artifact.scheme.name == "auto"
        assert artifact.scheme.predicted_kl_nats is not None
        assert "losses measured on the calibration data" in artifact.scheme.reason
        grids = {tensor.grid for tensor in artifact.tensors} - FLOAT_BYTES.keys()
        assert len(grids) > 1
    verified = run_verify(request.output, SilentReporter()).artifacts
    assert all(item.verification and item.verification.passed for item in verified)
    # The Hub takes the last type that it knows in the name for the file's.
    assert made["gguf"].files[0].name == "model-auto-Q4_K_M.gguf"
    assert not (request.output / ".tightfit-job").exists()


def test_what_the_allocator_chose_is_what_the_file_stores(auto: Build) -> None:
    request = auto()
    result = run_export(request, SilentReporter())
    plan = result.plans[0]
    assert result.manifest is not None

    stored = [tensor.grid for tensor in result.manifest.artifacts[0].tensors]

    assert sorted(stored) == sorted(plan.storage.values())
    assert plan.mix is not None
    assert plan.mix.used_bytes <= plan.mix.budget_bytes


def test_a_plan_that_leaves_nothing_to_choose_measures_nothing(
    auto: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_arguments: object) -> None:
        pytest.fail("every tensor has its largest grid")

    monkeypatch.setattr("tightfit.pipeline.refine.measure_sensitivity", measure)

    made = artifacts(auto(budget=Budget()))["gguf"]

    assert {tensor.grid for tensor in made.tensors} == {"Q8_0", "F32"}


def test_an_interrupted_export_goes_on_with_the_losses_that_it_measured(
    auto: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = artifacts(auto(output=tmp_path / "whole"))["gguf"]
    request = auto(output=tmp_path / "resumed")

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "run_quantization", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_export(request, SilentReporter())
    kept = json.loads((request.output / ".tightfit-job/sensitivity/sensitivity.json").read_text())
    assert kept["n_tokens"] > 0

    resumed = artifacts(request)["gguf"]

    assert resumed.files[0].sha256 == whole.files[0].sha256
    assert read_manifest(request.output) == read_manifest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "problem", "way_out"),
    [
        ({"budget": Budget(bits_per_weight=1.0)}, "smallest mix", "--bpw"),
        ({"budget": Budget(file_gib=1e-6)}, "smallest mix", "--budget-gib"),
        ({"budget": Budget(file_gib=float("nan"))}, "not a size", "leave it out"),
        ({"budget": Budget(file_gib=1.0, bits_per_weight=4.0)}, "same bytes", "leave one out"),
        ({"scheme": "q4_k_m"}, "was asked for", "leave one of the two out"),
    ],
)
def test_budgets_that_cannot_be(
    auto: Build, changes: dict[str, object], problem: str, way_out: str
) -> None:
    request = auto(**changes)

    with pytest.raises(UsageError, match=problem) as caught:
        run_export(request, SilentReporter())

    assert way_out in f"{caught.value.allowed} {caught.value.hint}"
    assert not request.output.exists()


def test_losses_of_other_grids_are_not_taken(auto: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two commands plan the same storage but choose from other grids."""
    first = auto(head="q8_0")
    kept = run_export(auto(head="q8_0", dry_run=True), SilentReporter()).plans[0].storage
    assert kept["lm_head.weight"] == "Q8_0"

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "run_quantization", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_export(first, SilentReporter())
    with pytest.raises(ArtifactError, match="other inputs or options"):
        run_export(auto(), SilentReporter())
