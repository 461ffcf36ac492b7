"""The commands that run jobs: options become the request, results become text and JSON."""

import json
from pathlib import Path

import pytest

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.models import find_model
from tightfit.calib.precision import Precision as CalibrationPrecision
from tightfit.cli.main import run
from tightfit.errors import RuntimeFailureError
from tightfit.export.manifest import (
    SCHEMA_VERSION,
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
from tightfit.pipeline.export import ExportResult
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms.gptq import GptqSettings
from tightfit.quant.algorithms.ordering import Order
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.job_needs import JobNeeds
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import load_target
from tightfit.targets.workload import CacheType, Split


def made_manifest(**changes: object) -> Manifest:
    """A manifest with one artifact, changed as the test says."""
    artifact = Artifact(
        format="gguf",
        scheme=SchemeRecord(name="q4_k_m", method="gptq", order="group-aware", reason="it fits"),
        files=(FileRecord(name="tiny-r1-Q4_K_M.gguf", size_bytes=2 << 20, sha256="cd" * 32),),
        bits_per_weight=4.892,
        weights_sha256="ab" * 32,
        tensors=tuple(
            TensorRecord(name=name, grid=grid, shape=(2, 2), sha256="ef" * 32, relative_error=None)
            for name, grid in (("a", "Q4_K"), ("b", "Q4_K"), ("c", "F32"))
        ),
        **changes,  # type: ignore[arg-type]
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        input=InputRecord(
            id="tiny-r1", revision=None, model_type="qwen2", parameters=3_400_000, files=()
        ),
        target="rtx3060-8gb",
        context_tokens=1024,
        command=("export", "tiny-r1"),
        calibration=CalibrationRecord(
            source="embedded", samples=8, tokens=900, max_tokens=2048, seed=3, sha256="ab"
        ),
        imatrix=None,
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
        needs = JobNeeds(peak_memory_bytes=3 << 30, scratch_bytes=2 << 30, output_bytes=1 << 30)
        return ExportResult(folder=request.output, plans=(plan,), manifest=manifest, needs=needs)

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
        "--onnx-precision float32 --onnx-layout transformers-js --also-for 8.9,12.0 --bpw 4.5 "
        "--budget-gib 2 --batch 3 --kv-cache q8_0 --split tensor --target-file mine.toml "
        "--calibrate-from original --max-memory 64G --workers 4 --ray auto --mtp keep "
        "--calib-precision highest"
    )
    assert run(line.split()) == 0
    assert requests == [
        ExportRequest(
            model="org/Model",
            target="cpu-16gb",
            output=Path("here"),
            revision="abc",
            scheme="q6_k",
            target_file=Path("mine.toml"),
            budget=Budget(file_gib=2, bits_per_weight=4.5),
            n_sequences=3,
            cache_type=CacheType.Q8_0,
            split=Split.TENSOR,
            formats=("gguf", "onnx"),
            head="f16",
            embedding="int8-g32",
            method=Method(
                algorithm=Algorithm.AWQ_GPTQ,
                gptq=GptqSettings(order=Order.NATURAL),
                from_original=True,
                precision=CalibrationPrecision.HIGHEST,
            ),
            max_memory_bytes=64 * 10**9,
            workers=4,
            ray_address="auto",
            keep_mtp=True,
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
        ("--calibrate-from", "nowhere"),
        ("--calib-precision", "int8"),
        ("--mtp", "maybe"),
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
    assert "auto" in shown
    assert "gguf: auto gives every tensor the largest grid that it uses" in shown
    assert "here/tiny-r1-Q4_K_M.gguf" in shown
    assert "2.0 MiB" in shown
    assert "3 of 3 tensors equal, bit for bit" in shown
    assert "2 Q4_K, 1 F32" in shown
    assert run(["export", "-t", "rtx3060-8gb", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["artifacts"][0]["files"][0]["size_bytes"] == 2 << 20
    assert document["plans"][0]["chosen"]["scheme"] == "auto"


@pytest.mark.usefixtures("requests")
def test_dry_run_says_that_nothing_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-t", "rtx3060-8gb", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was written" in shown
    assert "3.00 GiB of memory a worker, 2.00 GiB of scratch disk, 1.00 GiB" in shown
    assert run(["export", "-t", "rtx3060-8gb", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"] is None
    assert document["job"]["scratch_bytes"] == 2 << 30


def verification(*, passed: bool) -> Verification:
    parity = Parity(
        runtime="llama.cpp",
        tokens=321,
        mean_abs_difference=1e-3,
        relative_difference=1e-2,
        typical_difference=1e-3,
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


def test_failure_of_the_runtime_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def died(*_: object, **__: object) -> None:
        raise RuntimeFailureError("llama.cpp died", hint="export again")

    monkeypatch.setattr("tightfit.verify.run.run_verify", died)
    assert run(["verify", "here"]) == 1
    assert capsys.readouterr().err == "error: llama.cpp died\nhint:  export again\n"
