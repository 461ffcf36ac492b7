"""The drift of exported files: verdicts, exit statuses, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from tightfit.cli.main import run
from tightfit.drift.gate import Outcome
from tightfit.errors import ArtifactError, DriftError, UsageError
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.drift import DriftRequest, run_drift
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


@pytest.fixture(scope="module")
def q8_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("q8") / "out", "q8_0")


def test_eight_bits_pass_and_the_report_is_kept(q8_0: Path) -> None:
    (report,) = run_drift(DriftRequest(artifact=q8_0, baseline=None), SilentReporter())

    assert report.decision.outcome is Outcome.PASS
    assert report.decision.exit_status == 0
    assert report.accuracy.n == 500
    assert 0.75 <= report.accuracy.baseline_correct / 500 <= 0.95
    assert report.tokens.kl_mean_nats < 1e-3
    assert report.tokens.top1_agreement > 0.99
    kept = read_manifest(q8_0).artifacts[0].drift
    assert kept is not None
    assert kept == json.loads(json.dumps(dataclasses.asdict(report)))


def test_two_formats_of_the_same_numbers_drift_alike(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", "gptq-int4-g128", formats=("gguf", "onnx"))
    request = DriftRequest(artifact=folder, baseline=None, subset="embedded:n=96", max_tokens=200)

    in_llama_cpp, in_onnxruntime = run_drift(request, SilentReporter())

    assert (in_llama_cpp.format, in_onnxruntime.format) == ("gguf", "onnx")
    assert "llama.cpp" in in_llama_cpp.runtime.label
    assert "onnxruntime" in in_onnxruntime.runtime.label
    for report in (in_llama_cpp, in_onnxruntime):
        assert 1e-5 < report.tokens.kl_mean_nats < 2e-3  # int4 loses something, and not much
        assert abs(report.accuracy.drop_points) < 5
    # Both were compared with the very same answers and logits of one baseline.
    assert in_llama_cpp.baseline_grades == in_onnxruntime.baseline_grades
    assert in_llama_cpp.tokens.baseline_perplexity == in_onnxruntime.tokens.baseline_perplexity
    assert in_llama_cpp.tokens.n_tokens == in_onnxruntime.tokens.n_tokens
    kept = {made.format: made.drift for made in read_manifest(folder).artifacts}
    for report in (in_llama_cpp, in_onnxruntime):
        assert kept[report.format] == json.loads(json.dumps(dataclasses.asdict(report)))

    # One of them alone, named or given as a file, is measured as it was among several.
    named = dataclasses.replace(request, formats=("onnx",))
    single = dataclasses.replace(request, artifact=folder / "onnx" / "model.onnx")
    for again in (named, single):
        (report,) = run_drift(again, SilentReporter())
        assert report.tokens == in_onnxruntime.tokens
        assert report.accuracy == in_onnxruntime.accuracy


def test_two_bits_fail_and_exit_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tmp_path / "out", "q2_k", Algorithm.RTN)

    options = ["--subset", "embedded:n=150,seed=0", "--max-tokens", "200", "--json"]
    status = run(["drift", str(folder), "--baseline", "tiny-r1", *options])

    assert status == 3
    (report,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert report["decision"]["outcome"] == "fail"
    assert report["accuracy"]["drop_lower_points"] > 2


def test_few_problems_are_inconclusive_and_exit_with_5(
    q8_0: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subset = "embedded:n=16,seed=0"

    status = run(["drift", str(q8_0), "--baseline", "tiny-r1", "--subset", subset, "--json"])

    assert status == 5
    (report,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert report["decision"]["outcome"] == "inconclusive"
    assert report["decision"]["needed_n"] > 16


def test_the_kl_limit_is_a_limit(q8_0: Path) -> None:
    request = DriftRequest(
        artifact=q8_0, baseline=None, subset="embedded:n=64", max_kl_nats=1e-9, max_tokens=64
    )

    (report,) = run_drift(request, SilentReporter())

    assert report.decision.outcome is Outcome.FAIL


def test_a_baseline_with_another_vocabulary_is_refused(q8_0: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "qwen2", vocab_size=640)
    request = DriftRequest(artifact=q8_0, baseline=str(other), subset="embedded:n=4")

    with pytest.raises(DriftError, match="different tokenizers"):
        run_drift(request, SilentReporter())


def test_answers_beyond_the_context_are_refused(q8_0: Path) -> None:
    request = DriftRequest(artifact=q8_0, baseline=None, max_tokens=5000)

    with pytest.raises(DriftError, match="the model's context is 1024"):
        run_drift(request, SilentReporter())


def test_a_missing_artifact_is_said() -> None:
    with pytest.raises(ArtifactError, match="no artifact 'nowhere'"):
        run_drift(DriftRequest(artifact=Path("nowhere"), baseline=None), SilentReporter())


def test_a_device_that_torch_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    artifact = tmp_path / "a.gguf"
    artifact.touch()
    request = DriftRequest(artifact=artifact, baseline=None, device="nonsense")
    with pytest.raises(UsageError, match="cannot use the device 'nonsense'"):
        run_drift(request, SilentReporter())
