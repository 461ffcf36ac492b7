"""The commands that run jobs: options become the request, results become text and JSON."""

import json
from pathlib import Path

import pytest

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.models import find_model
from tightfit.cli import drift as drift_cli
from tightfit.cli.main import run
from tightfit.drift.gate import MAX_DROP_POINTS, MAX_KL_NATS, GateDecision, Outcome
from tightfit.drift.measure import Protocol
from tightfit.drift.metrics import TokenDrift
from tightfit.drift.statistics import compare_paired
from tightfit.drift.subset import EMBEDDED
from tightfit.errors import RuntimeFailureError
from tightfit.export.manifest import (
    Artifact,
    CalibrationRecord,
    FileRecord,
    InputRecord,
    Manifest,
    Parity,
    SchemeRecord,
    TensorRecord,
    Verification,
)
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.pipeline.drift import DriftReport, DriftRequest
from tightfit.pipeline.export import ExportResult
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms.gptq import GptqSettings
from tightfit.quant.algorithms.ordering import Order
from tightfit.runtimes.results import SystemInfo
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import load_target


def made_manifest(**changes: object) -> Manifest:
    """A manifest with one artifact, changed as the test says."""
    artifact = Artifact(
        format="gguf",
        scheme=SchemeRecord(name="q4_k_m", method="gptq", order="group-aware", reason="it fits"),
        files=(FileRecord(name="tiny-r1-Q4_K_M.gguf", size_bytes=2 << 20, sha256="cd" * 32),),
        bits_per_weight=4.892,
        weights_sha256="ab" * 32,
        tensors=tuple(
            TensorRecord(name=name, grid=grid, shape=(2, 2), sha256="ef", relative_error=None)
            for name, grid in (("a", "Q4_K"), ("b", "Q4_K"), ("c", "F32"))
        ),
        **changes,  # type: ignore[arg-type]
    )
    return Manifest(
        schema_version=2,
        input=InputRecord(
            id="tiny-r1", revision=None, model_type="qwen2", parameters=3_400_000, files=()
        ),
        target="rtx3060-8gb",
        context_tokens=1024,
        calibration=CalibrationRecord(
            source="embedded", samples=8, tokens=900, max_tokens=2048, seed=3, sha256="ab"
        ),
        artifacts=(artifact,),
        companions=(),
        versions={"tightfit": "0.1.0"},
    )


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ExportRequest]:
    """The requests that reach the job, which answers with a made-up result."""
    seen: list[ExportRequest] = []

    def run_export(request: ExportRequest, _reporter: object) -> ExportResult:
        seen.append(request)
        known = find_model("r1-distill-qwen-1.5b")
        assert known
        plan = make_plan(known.dimensions, load_target(request.target), model="1.5b")
        manifest = None if request.dry_run else made_manifest()
        return ExportResult(folder=request.output, plans=(plan,), manifest=manifest)

    monkeypatch.setattr("tightfit.pipeline.export.run_export", run_export)
    return seen


def test_export_defaults(requests: list[ExportRequest]) -> None:
    assert run(["export", "--target", "rtx3060-8gb"]) == 0
    assert requests == [
        ExportRequest(model=None, target="rtx3060-8gb", output=Path("out/tiny-r1-rtx3060-8gb"))
    ]


def test_export_takes_every_option(requests: list[ExportRequest]) -> None:
    line = (
        "export org/Model -t cpu-16gb -o here --scheme q6_k --method awq-gptq --context 4096 "
        "--calib text.txt --calib-samples 7 --calib-length 99 --seed 5 --device cuda:1 "
        "--revision abc --split-max-size 4G --dry-run --overwrite --format gguf,onnx "
        "--order natural --head f16 --embedding int8-g32 --onnx-dialect standard "
        "--onnx-precision float32 --onnx-layout transformers-js --also-for 8.9,12.0"
    )
    assert run(line.split()) == 0
    assert requests == [
        ExportRequest(
            model="org/Model",
            target="cpu-16gb",
            output=Path("here"),
            revision="abc",
            scheme="q6_k",
            formats=("gguf", "onnx"),
            head="f16",
            embedding="int8-g32",
            method=Method(algorithm=Algorithm.AWQ_GPTQ, gptq=GptqSettings(order=Order.NATURAL)),
            onnx_dialect=Dialect.STANDARD,
            onnx_precision=Precision.FLOAT32,
            onnx_layout=OnnxLayout.TRANSFORMERS_JS,
            capabilities=("8.9", "12.0"),
            context_tokens=4096,
            calibration=CalibrationOptions(source="text.txt", samples=7, max_tokens=99, seed=5),
            device="cuda:1",
            split_max_bytes=4 * 10**9,
            overwrite=True,
            dry_run=True,
        )
    ]


@pytest.mark.parametrize(
    "option",
    [
        ("--format", "gguf,tflite"),
        ("--format", ""),
        ("--method", "magic"),
        ("--order", "random"),
        ("--onnx-dialect", "caffe"),
        ("--onnx-precision", "int3"),
        ("--onnx-layout", "flat"),
    ],
)
def test_export_refuses_what_does_not_exist(
    option: tuple[str, str], requests: list[ExportRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "-t", "rtx3060-8gb", *option]) == 2
    assert requests == []
    message = capsys.readouterr().err
    assert option[0] in message
    assert "allowed:" in message


@pytest.mark.usefixtures("requests")
def test_export_shows_plan_files_and_exactness(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-t", "rtx3060-8gb", "-o", "here"]) == 0
    shown = capsys.readouterr().out
    assert "> q4_k_m" in shown
    assert "here/tiny-r1-Q4_K_M.gguf" in shown
    assert "2.0 MiB" in shown
    assert "3 of 3 tensors equal, bit for bit" in shown
    assert "2 Q4_K, 1 F32" in shown
    assert run(["export", "-t", "rtx3060-8gb", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["artifacts"][0]["files"][0]["size_bytes"] == 2 << 20
    assert document["plans"][0]["chosen"]["scheme"] == "q4_k_m"


@pytest.mark.usefixtures("requests")
def test_dry_run_says_that_nothing_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-t", "rtx3060-8gb", "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert run(["export", "-t", "rtx3060-8gb", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"] is None


def verification(*, passed: bool) -> Verification:
    parity = Parity(
        runtime="llama.cpp",
        tokens=321,
        mean_abs_difference=1e-3,
        relative_difference=1e-2,
        relative_maximum=3e-2,
        max_abs_difference=2e-2,
        mean_kl_nats=3e-5,
        max_kl_nats=4e-4,
        top1_agreement=0.995,
        passed=passed,
    )
    return Verification(tensors=51, exact_tensors=51, parity=parity)


@pytest.mark.parametrize(("passed", "status", "word"), [(True, 0, "passed"), (False, 1, "FAILED")])
def test_verify_shows_checks_and_sets_the_status(
    passed: bool,
    status: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = made_manifest(verification=verification(passed=passed))
    monkeypatch.setattr("tightfit.verify.run.run_verify", lambda *_, **__: manifest)
    assert run(["verify", "here"]) == status
    shown = capsys.readouterr().out
    assert "51 of 51" in shown
    assert "321 tokens" in shown
    assert "99.50%" in shown
    assert shown.endswith(word + "\n")
    assert run(["verify", "here", "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is passed
    assert document["artifacts"][0]["verification"]["parity"]["max_kl_nats"] == 4e-4


def made_report(outcome: Outcome, format_name: str = "gguf") -> DriftReport:
    baseline = [True] * 90 + [False] * 10
    artifact = [False] * 3 + [True] * 88 + [False] * 9
    return DriftReport(
        format=format_name,
        artifact=f"tiny-r1.{format_name}",
        baseline="tiny-r1",
        subset="embedded:n=100",
        subset_sha256="ab",
        runtime=SystemInfo(
            label="llama.cpp (xllamacpp 1)",
            device="cpu",
            threads=2,
            context_tokens=1024,
            kv_type="f16",
            kv_bytes=1,
            facts={"cpu_features": "AVX2 = 1"},
        ),
        protocol=Protocol(max_tokens=900),
        tokens=TokenDrift(
            n_samples=64,
            n_tokens=3210,
            kl_mean_nats=2.5e-3,
            kl_mean_stderr_nats=1e-4,
            kl_median_nats=1e-5,
            kl_p99_nats=4e-2,
            kl_max_nats=0.3,
            top1_agreement=0.9876,
            top1_agreement_stderr=None,
            baseline_perplexity=1.171,
            artifact_perplexity=1.175,
        ),
        accuracy=compare_paired(baseline, artifact),
        baseline_grades={"correct": 90, "wrong": 10},
        artifact_grades={"correct": 88, "wrong": 12},
        max_drop_points=2.0,
        max_kl_nats=0.05,
        decision=GateDecision(outcome=outcome, reasons=("a reason", "another"), needed_n=484),
    )


@pytest.mark.parametrize(
    ("outcome", "status"), [(Outcome.PASS, 0), (Outcome.FAIL, 3), (Outcome.INCONCLUSIVE, 5)]
)
def test_drift_shows_the_table_and_sets_the_status(
    outcome: Outcome,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[DriftRequest] = []

    def run_drift(request: DriftRequest, _reporter: object) -> tuple[DriftReport, ...]:
        seen.append(request)
        return (made_report(outcome),)

    monkeypatch.setattr("tightfit.pipeline.drift.run_drift", run_drift)
    assert run(["drift", "here", "--baseline", "tiny-r1"]) == status
    shown = capsys.readouterr().out
    for part in (
        "90/100 = 90.0% [82.6, 94.5]",
        "88/100 = 88.0%",
        "1.1710",
        "1.1750",
        "2.50e-03 ± 1.0e-04 nats",
        "3.00e-01 nats",
        "98.76%",
        "+2.00 points [",
        "3 lost, 1 won",
        outcome.upper(),
        "a reason",
    ):
        assert part in shown
    assert seen == [DriftRequest(artifact=Path("here"), baseline="tiny-r1")]
    assert run(["drift", "here", "--baseline", "tiny-r1", "--json"]) == status
    (document,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert document["decision"]["outcome"] == outcome
    assert document["accuracy"]["n"] == 100


def test_drift_shows_a_row_for_each_artifact_and_exits_with_the_worst(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = (
        made_report(Outcome.PASS),
        made_report(Outcome.FAIL, "onnx"),
        made_report(Outcome.INCONCLUSIVE, "tensorrt"),
    )
    monkeypatch.setattr("tightfit.pipeline.drift.run_drift", lambda *_: reports)
    assert run(["drift", "here", "--baseline", "tiny-r1"]) == 3
    shown = capsys.readouterr().out
    assert "100 problems of embedded:n=100, 3210 tokens of 64 traces" in shown
    assert "baseline tiny-r1: 90/100 = 90.0%" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if "88.0%" in line}
    for report in reports:
        verdict = report.decision.outcome.upper()
        for part in ("+2.00 points [", "2.50e-03 ± 1.0e-04", "98.76%", verdict):
            assert part in rows[report.format]
        assert f"{report.format}: {report.artifact} in llama.cpp (xllamacpp 1)" in shown
    assert shown.count("  a reason") == 3
    assert run(["drift", "here", "--baseline", "tiny-r1", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert [each["format"] for each in document["artifacts"]] == ["gguf", "onnx", "tensorrt"]


def test_drift_takes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DriftRequest] = []

    def run_drift(request: DriftRequest, _reporter: object) -> tuple[DriftReport, ...]:
        seen.append(request)
        return (made_report(Outcome.PASS),)

    monkeypatch.setattr("tightfit.pipeline.drift.run_drift", run_drift)
    line = (
        "drift a.gguf --baseline org/Model --revision abc --subset math500:n=64 --max-drop 1 "
        "--max-kl 0.01 --max-tokens 500 --temperature 0.6 --top-p 0.95 --seed 4 --device cuda "
        "--provider cuda --format onnx,gguf"
    )
    assert run(line.split()) == 0
    assert seen == [
        DriftRequest(
            artifact=Path("a.gguf"),
            baseline="org/Model",
            revision="abc",
            subset="math500:n=64",
            max_drop_points=1.0,
            max_kl_nats=0.01,
            max_tokens=500,
            temperature=0.6,
            top_p=0.95,
            seed=4,
            device="cuda",
            provider="cuda",
            formats=("onnx", "gguf"),
        )
    ]


def test_defaults_of_the_limits_are_those_of_the_gate() -> None:
    defaults = drift_cli.drift_command.__defaults__
    assert defaults is not None
    assert defaults[:3] == (EMBEDDED, MAX_DROP_POINTS, MAX_KL_NATS)


def test_failure_of_the_runtime_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def died(*_: object, **__: object) -> None:
        raise RuntimeFailureError("llama.cpp died", hint="export again")

    monkeypatch.setattr("tightfit.verify.run.run_verify", died)
    assert run(["verify", "here"]) == 1
    assert capsys.readouterr().err == "error: llama.cpp died\nhint:  export again\n"
