"""`verify --on-gpu` and `build-engine`: refused without the card, recorded where it runs.

No card is here: onnxruntime on the ONNX file stands in for the running engine. Building is real.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.tensorrt_folders import contents, seem_to_have_card

from tightfit.cli.main import run
from tightfit.errors import (
    ArtifactError,
    MissingPackageError,
    RuntimeFailureError,
    UsageError,
)
from tightfit.export.manifest import EngineRecord, read_manifest
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.build_engine import run_build_engine
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.runtimes.tensorrt.engine import Engine
from tightfit.runtimes.tensorrt.package import Package
from tightfit.verify.run import run_verify

from .conftest import SMALL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is an optional, proprietary package",
)
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
OURS, HERE = "tensorrt/model.sm86.engine", "tensorrt/model.this-gpu.engine"


@pytest.fixture(scope="module")
def exported(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    run_export(
        ExportRequest(
            model=str(qwen2),
            target="rtx3060-8gb",
            output=folder,
            formats=("tensorrt",),
            scheme="int4-g128",
            calibration=SMALL,
        ),
        SilentReporter(),
    )
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "out"))


@pytest.fixture
def other_onnx(exported: Path, tmp_path: Path) -> Path:
    """The graph of `exported` with the weights of another model."""
    model = make_checkpoint(tmp_path / "other", "qwen2", seed=1)
    request = ExportRequest(
        model=str(model),
        target="rtx3060-8gb",
        output=tmp_path / "other-out",
        formats=("onnx",),
        scheme="int4-g128",
        onnx_dialect=Dialect.STANDARD,
        calibration=SMALL,
    )
    run_export(request, SilentReporter())
    return request.output / "onnx" / "model.onnx"


def engines(folder: Path) -> tuple[EngineRecord, ...]:
    return read_manifest(folder).artifacts[0].engines


@NO_GPU
@pytest.mark.parametrize(
    "command",
    [["verify", "--on-gpu"], ["build-engine", "--package", "tensorrt_rtx"]],
    ids=" ".join,
)
def test_without_a_gpu_nothing_changes(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)

    assert run([command[0], str(folder), *command[1:]]) == 1

    said = capsys.readouterr().err
    assert "error: this machine has no NVIDIA GPU" in said
    assert "on the machine that has the card" in said
    # At once: not after minutes of comparing logits.
    assert "Comparing" not in said
    assert contents(folder) == before


def test_classical_tensorrt_is_named_where_it_is_missing(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(MissingPackageError, match="package tensorrt,") as caught:
        run_build_engine(folder, SilentReporter())
    assert "on the machine that has the GPU" in caught.value.hint
    assert contents(folder) == before


def test_verify_on_gpu_records_what_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx")

    run_verify(folder, SilentReporter(), on_gpu=True)

    (record,) = engines(folder)
    assert (record.built, record.executed, record.device) == (True, True, "cpu")
    assert record.tokens_per_s is not None
    assert record.tokens_per_s > 0
    assert record.relative_difference is not None
    assert 0 < record.relative_difference < 5e-3
    # The engine serves one sequence at a time, the golden batch has two.
    assert set(batches) == {1}
    # A later verification on a machine without the card keeps the record.
    run_verify(folder, SilentReporter())
    assert engines(folder) == (record,)


def test_the_command_shows_what_ran(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx")
    assert run(["verify", str(folder), "--on-gpu"]) == 0
    assert "ran on cpu: " in capsys.readouterr().out


def test_wrong_logits_are_an_error(
    folder: Path, other_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seem_to_have_card(monkeypatch, other_onnx)
    before = contents(folder)

    with pytest.raises(ArtifactError, match=f"{OURS} computes other logits on cpu"):
        run_verify(folder, SilentReporter(), on_gpu=True)

    assert contents(folder) == before


def test_nan_is_no_agreement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx")
    right = Engine.run

    def broken(self: Engine, batch):  # type: ignore[no-untyped-def]
        ran = right(self, batch)
        ran.logits_BTV[:, 3] = np.nan
        return ran

    monkeypatch.setattr(Engine, "run", broken)
    with pytest.raises(ArtifactError, match="computes other logits"):
        run_verify(folder, SilentReporter(), on_gpu=True)


def test_no_engine_for_this_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx", capability="8.9")
    with pytest.raises(RuntimeFailureError, match=r"compute capability 8\.9") as caught:
        run_verify(folder, SilentReporter(), on_gpu=True)
    assert caught.value.allowed == "engines are for: 8.6"
    assert "build-engine" in caught.value.hint


def test_folders_without_an_engine(qwen2: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        model=str(qwen2), target="rtx3060-8gb", output=tmp_path / "out", scheme="f16"
    )
    run_export(request, SilentReporter())
    with pytest.raises(ArtifactError, match="no TensorRT engine"):
        run_verify(request.output, SilentReporter(), on_gpu=True)
    with pytest.raises(ArtifactError, match="no TensorRT artifact") as caught:
        run_build_engine(request.output, SilentReporter())
    assert "--format tensorrt" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"tightfit\.json"):
        run_build_engine(tmp_path, SilentReporter())


def test_build_engine_for_the_card_of_this_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx", capability="8.9")
    before = contents(folder)

    record = run_build_engine(folder, SilentReporter(), package=Package.RTX)

    assert record.file == HERE
    assert (record.executed, record.device) == (True, "cpu")
    assert record.compute_capabilities == ("8.9",)
    assert record.verbatim_tensors == record.quantized_tensors == 15
    assert [each.file for each in engines(folder)] == [OURS, HERE]
    new = contents(folder)
    assert set(new) - set(before) == {HERE, "tensorrt/model.this-gpu.build.log"}
    run_verify(folder, SilentReporter())
    run_verify(folder, SilentReporter(), on_gpu=True)

    with pytest.raises(ArtifactError, match="exists already"):
        run_build_engine(folder, SilentReporter(), package=Package.RTX)
    run_build_engine(folder, SilentReporter(), package=Package.RTX, overwrite=True)
    assert [each.file for each in engines(folder)] == [OURS, HERE]
    run_verify(folder, SilentReporter())


def test_a_new_engine_that_is_wrong_leaves_nothing(
    folder: Path, other_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seem_to_have_card(monkeypatch, other_onnx)
    before = contents(folder)

    with pytest.raises(ArtifactError, match=f"{HERE} computes other logits"):
        run_build_engine(folder, SilentReporter(), package=Package.RTX)

    assert contents(folder) == before


def test_a_card_that_tensorrt_for_rtx_does_not_serve(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx", capability="9.0")
    with pytest.raises(UsageError, match=r"compute capability 9\.0"):
        run_build_engine(folder, SilentReporter(), package=Package.RTX)


def test_a_damaged_onnx_file_is_not_built_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seem_to_have_card(monkeypatch, folder / "tensorrt" / "model.onnx")
    data = folder / "tensorrt" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data is not the file"):
        run_build_engine(folder, SilentReporter(), package=Package.RTX)
