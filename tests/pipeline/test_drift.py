"""The drift of exported files: verdicts, exit statuses, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.tiny_r1 import TINY_R1

from tightfit.cli.main import run
from tightfit.drift.gate import Limits, Outcome
from tightfit.drift.report import DriftReport, from_fields
from tightfit.errors import ArtifactError, DriftError, UsageError
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.drift import DriftRequest, ProtocolChoice, run_drift
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter

pytestmark = pytest.mark.slow


def export(
    folder: Path,
    scheme: str,
    algorithm: Algorithm = Algorithm.GPTQ,
    formats: tuple[str, ...] = ("gguf",),
) -> Path:
    """tiny-r1 at that scheme."""
    request = ExportRequest(
        model=None,
        target="rtx3060-8gb",
        output=folder,
        scheme=scheme,
        formats=formats,
        method=Method(algorithm=algorithm),
    )
    run_export(request, SilentReporter())
    return folder


def drift(artifact: Path, **changes: object) -> tuple[DriftReport, ...]:
    """The reports on tiny-r1's artifact."""
    request = DriftRequest(artifact=artifact, baseline=None)
    results = run_drift(dataclasses.replace(request, **changes), SilentReporter())
    return tuple(result.report for result in results)


@pytest.fixture(scope="module")
def q8_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("q8") / "out", "q8_0")


def test_eight_bits_pass_and_the_report_is_kept(q8_0: Path) -> None:
    (report,) = drift(q8_0)

    assert report.decision.outcome is Outcome.PASS
    assert report.decision.exit_status == 0
    assert report.accuracy.n == 500
    assert 0.75 <= report.accuracy.baseline_accuracy <= 0.95
    assert report.tokens is not None
    assert report.noise_floor is not None
    assert report.noise_floor.kl_mean_nats < report.tokens.kl_mean_nats < 1e-3
    assert report.tokens.top1_agreement > 0.99
    assert sum(each.n_tokens for each in report.tokens.by_position) == report.tokens.n_tokens
    assert report.protocol.name == "greedy"
    assert report.reasoning.baseline.n_answers == 500
    kept = read_manifest(q8_0).artifacts[0].drift
    assert kept is not None
    assert from_fields(kept, "") == dataclasses.replace(report, flips=(), command="")


def test_a_good_four_bits_pass(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", "q4_k_m", Algorithm.AWQ_GPTQ)
    (report,) = drift(folder, limits=Limits(max_drop_points=3))  # what 500 problems can show

    assert report.decision.outcome is Outcome.PASS
    assert report.tokens is not None
    assert report.tokens.kl_mean_nats < 0.01


def test_two_formats_of_the_same_numbers_drift_alike(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", "gptq-int4-g128", formats=("gguf", "onnx"))
    options = {"subset": "embedded:n=96", "protocol": ProtocolChoice(max_tokens=200)}

    in_llama_cpp, in_onnxruntime = drift(folder, **options)

    assert in_llama_cpp.artifact.format == "gguf"
    assert in_onnxruntime.artifact.format == "onnx"
    assert "llama.cpp" in in_llama_cpp.runtime.label
    assert "onnxruntime" in in_onnxruntime.runtime.label
    for report in (in_llama_cpp, in_onnxruntime):
        assert report.tokens is not None
        assert 1e-5 < report.tokens.kl_mean_nats < 2e-3  # int4 loses something, and not much
        assert abs(report.accuracy.drop_points) < 5
    # Both were compared with the very same answers and logits of one baseline.
    assert in_llama_cpp.baseline_grades == in_onnxruntime.baseline_grades
    assert in_llama_cpp.noise_floor == in_onnxruntime.noise_floor
    assert in_llama_cpp.tokens is not None
    assert in_onnxruntime.tokens is not None
    assert in_llama_cpp.tokens.baseline_perplexity == in_onnxruntime.tokens.baseline_perplexity
    kept = {made.format: made.drift for made in read_manifest(folder).artifacts}
    for report in (in_llama_cpp, in_onnxruntime):
        record = from_fields(kept[report.artifact.format], "")
        assert record == dataclasses.replace(report, flips=(), command="")

    # One of them alone, named or given as a file, is measured as it was among several.
    for artifact, formats in ((folder, ("onnx",)), (folder / "onnx" / "model.onnx", ())):
        (report,) = drift(artifact, formats=formats, **options)
        assert report.tokens == in_onnxruntime.tokens
        assert report.accuracy == in_onnxruntime.accuracy


def test_two_bits_fail_and_exit_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path / "out", "q2_k", Algorithm.RTN)

    options = ["--subset", "embedded:n=150,seed=0", "--max-tokens", "200", "--json"]
    status = run(["drift", str(folder), "--baseline", "tiny-r1", *options])

    assert status == 3
    (report,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert report["decision"]["outcome"] == "fail"
    assert report["accuracy"]["drop_interval_points"][0] > 2
    lost = [flip for flip in report["flips"] if flip["lost"]]
    assert lost
    for flip in lost:
        assert flip["baseline_grade"] == "correct"
        assert flip["artifact_grade"] != "correct"
        assert f"\\boxed{{{flip['gold']}}}" in flip["baseline_text"]

    # Evidence this strong needs a fraction of the problems.
    status = run(["drift", str(folder), "--baseline", "tiny-r1", *options, "--sequential"])
    assert status == 3
    (stopped,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert stopped["accuracy"]["n"] < 100
    assert stopped["decision"]["sequential"]["fail_evidence"] >= 20


def test_eight_bits_pass_before_all_problems_are_asked(q8_0: Path) -> None:
    (report,) = drift(q8_0, sequential=True, limits=Limits(max_drop_points=5))

    assert report.decision.outcome is Outcome.PASS
    assert report.decision.sequential is not None
    assert report.decision.sequential.looked_at <= report.accuracy.n < 500
    assert report.data.n_problems == 500


def test_few_problems_are_inconclusive_and_exit_with_5(
    q8_0: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subset = "embedded:n=16,seed=0"

    status = run(["drift", str(q8_0), "--baseline", "tiny-r1", "--subset", subset, "--json"])

    assert status == 5
    (report,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert report["decision"]["outcome"] == "inconclusive"
    assert report["decision"]["findings"][0]["needed"] > 16


def test_the_kl_limit_is_a_limit(q8_0: Path) -> None:
    (report,) = drift(
        q8_0,
        subset="embedded:n=64",
        limits=Limits(max_kl_nats=1e-9),
        protocol=ProtocolChoice(max_tokens=64),
    )

    assert report.decision.outcome is Outcome.FAIL


def test_several_sampled_answers_to_each_problem(q8_0: Path) -> None:
    protocol = ProtocolChoice(name="deepseek", samples=3, seed=7, max_tokens=200)

    (report,) = drift(q8_0, subset="embedded:n=12", protocol=protocol)

    assert (report.accuracy.n, report.accuracy.samples) == (12, 3)
    assert sum(report.artifact_grades.values()) == 36
    assert report.protocol.temperature == 0.6
    assert report.protocol.max_tokens == 200


def test_a_checkpoint_of_transformers_is_measured_as_it_lies() -> None:
    """The unquantized checkpoint against itself: what differs is the runtime's arithmetic."""
    (report,) = drift(TINY_R1, subset="embedded:n=24", protocol=ProtocolChoice(max_tokens=150))

    assert report.artifact.format == "safetensors"
    assert "transformers" in report.runtime.label
    assert report.tokens is not None
    assert report.tokens.kl_max_nats < 1e-6
    assert report.accuracy.baseline_only + report.accuracy.artifact_only <= 2


def test_a_baseline_with_another_vocabulary_is_refused(q8_0: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "qwen2", vocab_size=640)

    with pytest.raises(DriftError, match="different tokenizers"):
        drift(
            q8_0,
            baseline=str(other),
            subset="embedded:n=4",
            protocol=ProtocolChoice(max_tokens=8),
        )


def test_answers_beyond_the_context_are_refused(q8_0: Path) -> None:
    with pytest.raises(DriftError, match="the model's context is 1024"):
        drift(q8_0, protocol=ProtocolChoice(max_tokens=5000))


def test_a_missing_artifact_is_said() -> None:
    with pytest.raises(ArtifactError, match="no artifact 'nowhere'"):
        drift(Path("nowhere"))


def test_a_device_that_torch_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    artifact = tmp_path / "a.gguf"
    artifact.touch()
    with pytest.raises(UsageError, match="cannot use the device 'nonsense'"):
        drift(artifact, device="nonsense")
