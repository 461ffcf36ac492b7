"""TensorRT engines from an export: what the manifest says of them, and what is refused."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reporters import Notes, StopAt
from support.tensorrt_stand_in import Engine as StandIn

from tightfit.errors import ArtifactError, MissingPackageError, UsageError
from tightfit.export.manifest import (
    Artifact,
    Manifest,
    hash_file,
    read_manifest,
    write_manifest,
)
from tightfit.export.onnx.readback import read_input_scales
from tightfit.export.tensorrt.golden import read_golden, relative_difference
from tightfit.export.tensorrt.onnx_weights import read_onnx_weights
from tightfit.export.tensorrt.plan_header import HEADER_BYTES, read_plan_header
from tightfit.pipeline.export import run_export
from tightfit.pipeline.job import FOLDER
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.runtimes.tensorrt.profile import Profile
from tightfit.verify.run import run_verify

from .conftest import SMALL

Build = Callable[..., ExportRequest]
needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is an optional, proprietary package",
)
LAYERS, LAYER_MATRICES = 2, 7
MATRICES = LAYERS * LAYER_MATRICES + 1
"""With the head."""


def export(request: ExportRequest, notes: Notes | None = None) -> Manifest:
    manifest = run_export(request, notes or SilentReporter()).manifest
    assert manifest is not None
    return manifest


def by_format(manifest: Manifest) -> dict[str, Artifact]:
    return {artifact.format: artifact for artifact in manifest.artifacts}


@pytest.fixture(scope="module")
def made(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notes]:
    """Three formats of the small Qwen2, INT4, for three cards."""
    folder, notes = tmp_path_factory.mktemp("made") / "out", Notes()
    request = ExportRequest(
        model=str(qwen2),
        target="rtx3060-8gb",
        output=folder,
        formats=("gguf", "onnx", "tensorrt"),
        scheme="gptq-int4-g128",
        capabilities=("8.9", "12.0"),
        calibration=SMALL,
    )
    export(request, notes)
    return folder, notes


@pytest.fixture
def copy(made: tuple[Path, Notes], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


@needs_tensorrt
def test_three_formats_hold_the_same_numbers(made: tuple[Path, Notes]) -> None:
    folder, notes = made
    artifacts = by_format(read_manifest(folder))

    assert list(artifacts) == ["gguf", "onnx", "tensorrt"]
    assert notes.count("Quantizing to") == 1
    assert notes.count("gguf, onnx, tensorrt share one quantization") == 1
    assert len({artifact.weights_sha256 for artifact in artifacts.values()}) == 1
    # The engine keeps the codes that its ONNX file has: our claim, from the bytes themselves.
    engine = (folder / artifacts["tensorrt"].engines[0].file).read_bytes()
    weights = read_onnx_weights(folder / "tensorrt" / "model.onnx").quantized
    assert len(weights) == MATRICES
    assert all(item.matrix.data.tobytes() in engine for item in weights.values())


@needs_tensorrt
def test_the_manifest_says_built_and_not_executed(made: tuple[Path, Notes]) -> None:
    folder, _ = made
    artifact = by_format(read_manifest(folder))["tensorrt"]
    (engine,) = artifact.engines

    assert (engine.built, engine.executed, engine.experimental) == (True, False, False)
    assert engine.compute_capabilities == ("8.6", "8.9", "12.0")
    assert engine.file == "tensorrt/model.sm86-sm89-sm120.engine"
    assert engine.builder.startswith("tensorrt_rtx 1.")
    assert engine.quantized_tensors == engine.verbatim_tensors == MATRICES
    assert (engine.device, engine.tokens_per_s, engine.relative_difference) == (None, None, None)
    assert read_plan_header(folder / engine.file).capabilities == ("8.6", "8.9", "12.0")
    assert artifact.graph is not None
    assert (artifact.graph.dialect, artifact.graph.precision) == ("standard", "float16")
    assert {Path(record.name).name for record in artifact.files} == {
        "model.onnx",
        "model.onnx.data",
        "golden.safetensors",
        "model.sm86-sm89-sm120.engine",
        "model.sm86-sm89-sm120.build.log",
    }


@needs_tensorrt
def test_every_format_verifies(copy: Path) -> None:
    for artifact in run_verify(copy, SilentReporter()).artifacts:
        assert artifact.verification is not None, artifact.format
        assert artifact.verification.passed, artifact.format


@needs_tensorrt
def test_an_engine_for_a100_is_experimental_and_said_to_be(request_for: Build) -> None:
    request = request_for(formats=("tensorrt",), scheme="int4-g128", target="a100-80gb")
    notes = Notes()

    (engine,) = by_format(export(request, notes))["tensorrt"].engines

    assert engine.experimental
    assert engine.compute_capabilities == ("8.0",)
    assert [line for line in notes.warnings if "8.0 is experimental" in line]


@needs_tensorrt
@pytest.mark.parametrize("scheme", ["fp8-channel", "fp8-channel-static"])
def test_fp8_for_a_card_that_has_it(request_for: Build, scheme: str) -> None:
    request = request_for(
        formats=("onnx", "tensorrt"), scheme=scheme, target="rtx4090-24gb", head="f16"
    )

    artifacts = by_format(export(request))

    engine = artifacts["tensorrt"].engines[0]
    assert engine.compute_capabilities == ("8.9",)
    assert engine.quantized_tensors == engine.verbatim_tensors == LAYERS * LAYER_MATRICES
    assert artifacts["onnx"].weights_sha256 == artifacts["tensorrt"].weights_sha256
    static = read_input_scales(request.output / "tensorrt" / "model.onnx")
    assert len(static) == (LAYERS * LAYER_MATRICES if scheme.endswith("static") else 0)
    for artifact in run_verify(request.output, SilentReporter()).artifacts:
        assert artifact.verification is not None
        assert artifact.verification.passed, artifact.format


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"scheme": "fp8-channel"}, "fp8", "int4-g128"),
    ({"scheme": "fp8", "target": "a100-80gb"}, "fp8", "int4-g128"),
    ({"scheme": "q4_k_m"}, "q4_k_m", "gptq-int4-g128"),
    ({"scheme": "int4-g32"}, "int4-g32", "g128"),
    ({"scheme": "int4-g128-asym"}, "asym", "sym"),
    ({"scheme": "int4-g128", "target": "cpu-16gb"}, "NVIDIA", "rtx3060-8gb"),
    ({"scheme": "int4-g128", "capabilities": ("9.0",)}, "9.0", "8.9 (RTX 40)"),
    ({"scheme": "int4-g128", "capabilities": ("",)}, "compute capability", "8.9 (RTX 40)"),
    (
        {"scheme": "fp8-channel", "target": "rtx4090-24gb", "capabilities": ("8.6",)},
        "fp8",
        "8.9 (RTX 40)",
    ),
    ({"scheme": "int4-g128", "context_tokens": 16}, "16 tokens", "--context 40"),
]


@pytest.mark.parametrize(
    ("changes", "problem", "way_out"), REFUSED, ids=lambda value: str(value)[:60]
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_no_engine_can_hold_is_refused_before_any_work(
    request_for: Build, changes: dict[str, Any], problem: str, way_out: str, dry_run: bool
) -> None:
    notes = Notes()
    request = request_for(formats=("tensorrt",), dry_run=dry_run, **changes)

    with pytest.raises(UsageError) as caught:
        run_export(request, notes)

    assert problem in caught.value.problem
    assert way_out in f"{caught.value.allowed} {caught.value.hint}"
    assert not request.output.exists()
    assert not notes.count("Hashing")


@pytest.mark.parametrize("model", [None, "r1-distill-qwen-1.5b"])
def test_a_missing_extra_is_named_before_any_work(
    request_for: Build, model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a registered model that is before its download."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorrt_rtx" else find_spec(name)
    )
    monkeypatch.setattr("tightfit.pipeline.export.locate_model", None)
    request = request_for(model=model, formats=("gguf", "tensorrt"), scheme="int4-g128")

    with pytest.raises(MissingPackageError) as caught:
        run_export(request, SilentReporter())

    assert "tightfit[tensorrt]" in caught.value.hint
    assert not request.output.exists()


@pytest.mark.parametrize("format_", ["onnx", "tensorrt"])
def test_onnxruntime_is_named_before_any_work(
    request_for: Build, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("tightfit.pipeline.export.locate_model", None)
    request = request_for(formats=("gguf", format_), scheme="int4-g128")

    with pytest.raises(MissingPackageError) as caught:
        run_export(request, SilentReporter())

    assert "tightfit[onnx]" in caught.value.hint
    assert not request.output.exists()


@needs_tensorrt
@pytest.mark.parametrize("damage", ["a weight", "truncated", "missing"])
def test_verify_finds_a_damaged_engine(copy: Path, damage: str) -> None:
    engine = copy / by_format(read_manifest(copy))["tensorrt"].engines[0].file
    if damage == "missing":
        engine.unlink()
    elif damage == "truncated":
        engine.write_bytes(engine.read_bytes()[:-1])
    else:
        flip_a_weight(copy, engine)

    with pytest.raises(ArtifactError, match=engine.name.replace(".", r"\.")):
        run_verify(copy, SilentReporter())


def flip_a_weight(folder: Path, engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    weights = read_onnx_weights(folder / "tensorrt" / "model.onnx").quantized
    start = content.index(next(iter(weights.values())).matrix.data.tobytes())
    assert start > HEADER_BYTES
    content[start + 100] ^= 1
    engine.write_bytes(content)


@needs_tensorrt
def test_a_weight_that_differs_is_found_though_its_hash_is_recorded(copy: Path) -> None:
    """A builder that changed a number, not a disk: hashes cannot tell."""
    manifest = read_manifest(copy)
    artifact = by_format(manifest)["tensorrt"]
    engine = copy / artifact.engines[0].file
    flip_a_weight(copy, engine)
    files = tuple(hash_file(copy / record.name, copy) for record in artifact.files)
    write_manifest(copy, manifest.with_artifact(replace(artifact, files=files)))

    with pytest.raises(ArtifactError, match="not byte for byte in the engine"):
        run_verify(copy, SilentReporter())


@needs_tensorrt
@pytest.mark.parametrize("phase", ["Building model", "Building engine", "Computing golden"])
def test_an_interrupted_build_leaves_no_engine_and_resumes(request_for: Build, phase: str) -> None:
    request = request_for(formats=("gguf", "tensorrt"), scheme="gptq-int4-g128")

    with pytest.raises(KeyboardInterrupt):
        run_export(request, StopAt(phase))

    assert not (request.output / "tightfit.json").exists()
    left = [path.name for path in (request.output / "tensorrt").iterdir()]
    assert not [name for name in left if "engine" in name or name.endswith((".log", ".part"))]
    units = list((request.output / FOLDER).rglob("*.safetensors"))
    written = {path: path.stat().st_mtime_ns for path in units}
    assert written

    with pytest.raises(KeyboardInterrupt):
        run_export(request, StopAt("Writing"))
    # Nothing was computed twice.
    assert {path: path.stat().st_mtime_ns for path in units} == written

    artifacts = by_format(export(request))
    assert artifacts["tensorrt"].engines[0].built
    assert artifacts["tensorrt"].weights_sha256 == artifacts["gguf"].weights_sha256
    assert not (request.output / FOLDER).exists()


@needs_tensorrt
def test_an_engine_that_fails_its_check_does_not_stay(
    request_for: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tightfit.export.tensorrt.structure.find_verbatim", lambda *_arguments: frozenset()
    )
    request = request_for(formats=("tensorrt",), scheme="int4-g128")

    with pytest.raises(ArtifactError, match="not what was asked for") as caught:
        run_export(request, SilentReporter())

    assert "model.sm86.build.log" in caught.value.hint
    assert (request.output / "tensorrt" / "model.sm86.build.log").exists()
    assert not list(request.output.rglob("*.engine"))
    assert not (request.output / "tightfit.json").exists()


@needs_tensorrt
def test_golden_logits_are_of_the_quantized_weights(made: tuple[Path, Notes]) -> None:
    """onnxruntime on the file beside it computes them, padding and cache included."""
    folder = made[0] / "tensorrt"
    golden = read_golden(folder / "golden.safetensors")
    batch = golden.batch
    session = StandIn(folder / "model.onnx", Profile(context_tokens=64)).session
    feed: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_mask_BT,
        "position_ids": batch.position_ids_BT,
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            heads, width = value.shape[1], value.shape[3]
            feed[value.name] = np.zeros((len(batch.input_ids_BT), heads, 0, width), np.float16)
    (logits_BTV,) = session.run(["logits"], feed)
    assert relative_difference(golden, logits_BTV.astype(np.float32)) < 5e-3
