"""ONNX files and engines are whole or absent: out of disk, or interrupted as they are written."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from support.full_disk import full_disk
from support.reporters import StopAt

from tightfit.cli.main import run
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter

Build = Callable[..., ExportRequest]
needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is an optional, proprietary package",
)
SMALLER_THAN_DATA, SMALLER_THAN_ENGINE = 600_000, 2_000_000
"""Above the units of the job, and below the data file, or the engine, of the small Qwen2."""


@pytest.mark.parametrize(
    ("format_", "limit_bytes", "file"),
    [
        ("onnx", SMALLER_THAN_DATA, "model.onnx"),
        pytest.param("tensorrt", SMALLER_THAN_DATA, "model.onnx", marks=needs_tensorrt),
        pytest.param("tensorrt", SMALLER_THAN_ENGINE, "model.sm86.engine", marks=needs_tensorrt),
    ],
)
def test_a_full_disk_is_said_and_nothing_looks_whole(
    format_: str,
    limit_bytes: int,
    file: str,
    qwen2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    command = ["export", str(qwen2), "-t", "rtx3060-8gb", "--format", format_, "-o", str(output)]
    command += ["--scheme", "int4-g128", "--calib-samples", "6", "--calib-length", "64"]

    with full_disk(limit_bytes):
        assert run(command) == 1

    said = capsys.readouterr().err
    assert "free some space" in said
    assert f"{output / format_ / file}" in said
    assert "Traceback" not in said
    left = {path.name for path in (output / format_).iterdir()}
    assert left <= ({"model.onnx", "model.onnx.data", "golden.safetensors"} - {file})
    assert not (output / "tightfit.json").exists()

    assert run(command) == 0
    assert read_manifest(output).artifacts[0].format == format_


@pytest.mark.parametrize("start", ["tensors", "Reading onnx/model.onnx"])
def test_an_interrupted_data_file_leaves_nothing(
    request_for: Build, start: str, tmp_path: Path
) -> None:
    request = request_for(formats=("onnx",), scheme="int4-g128")

    with pytest.raises(KeyboardInterrupt):
        run_export(request, StopAt(start))

    left = sorted(path.name for path in (request.output / "onnx").iterdir())
    assert left == ([] if start == "tensors" else ["model.onnx", "model.onnx.data"])
    assert not (request.output / "tightfit.json").exists()

    run_export(request, SilentReporter())
    whole = request_for(formats=("onnx",), scheme="int4-g128", output=tmp_path / "whole")
    run_export(whole, SilentReporter())
    names = ("onnx/model.onnx", "onnx/model.onnx.data", "genai_config.json", "tightfit.json")
    for name in names:
        assert (request.output / name).read_bytes() == (whole.output / name).read_bytes(), name
