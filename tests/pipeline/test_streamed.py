"""Conversion in one pass: the same bytes as through units, resumed tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from support.checkpoints import make_checkpoint, to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from support.reporters import Notes

from tightfit.calib.calibration import CalibrationOptions
from tightfit.cli.main import run
from tightfit.errors import ArtifactError
from tightfit.pipeline import export as export_module
from tightfit.pipeline import gguf_tensors, streamed
from tightfit.pipeline.export import run_export
from tightfit.pipeline.job import FOLDER, UNFINISHED
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.grid import Grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.reporter import SilentReporter

Export = Callable[..., bytes]
N_MATRICES = 1 + 2 * 7
"""Embedding, and seven in each block."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Interleaved rows, FP8 blocks, experts with heads of latent attention."""
    folder = tmp_path_factory.mktemp("models")
    plain = make_checkpoint(folder / "plain", "qwen2")
    return {
        "llama": make_checkpoint(folder / "llama", "llama", tie=True),
        "fp8": to_fp8_blocks(plain, folder / "fp8"),
        "deepseek_v3": make_deepseek_v3(folder / "mixture", rms_norm_eps=1e-6),
    }


@pytest.fixture
def export(models: dict[str, Path], tmp_path: Path) -> Export:
    """Export a model; returns the bytes of its GGUF."""

    def make(model: str, name: str, **changes: object) -> bytes:
        values: dict[str, object] = {
            "model": str(models[model]),
            "target": "cpu-16gb",
            "output": tmp_path / name,
            "scheme": "q4_k_m",
            "calibration": CalibrationOptions(source="none"),
            "method": Method(algorithm=Algorithm.RTN),
        }
        run_export(ExportRequest(**values | changes), SilentReporter())
        (file,) = (tmp_path / name).glob("*.gguf")
        return file.read_bytes()

    return make


@pytest.mark.parametrize("model", ["llama", "fp8", "deepseek_v3"])
@pytest.mark.parametrize("scheme", ["q4_k_m", "int4-g32"])
def test_the_same_bytes_as_from_units(
    export: Export,
    model: str,
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = export(model, "one", scheme=scheme, workers=1)
    # Pieces of 128 rows, which these small matrices have several of.
    monkeypatch.setattr(gguf_tensors, "PIECE_WEIGHTS", 1)
    assert export(model, "many", scheme=scheme, workers=3) == one
    monkeypatch.setattr("tightfit.pipeline.needs.is_streamed", lambda *_: False)
    assert export(model, "units", scheme=scheme) == one
    assert run(["verify", str(tmp_path / "many")]) == 0


def test_an_interrupted_file_goes_on_behind_its_last_whole_tensor(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export("llama", "whole")
    rtn, rounded = streamed.rtn, []

    def counted(*arguments: object) -> QuantizedTensor:
        rounded.append(arguments)
        if len(rounded) == 9:
            raise KeyboardInterrupt
        return rtn(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(streamed, "rtn", counted)
    with pytest.raises(KeyboardInterrupt):
        export("llama", "resumed", workers=1)
    assert not list((tmp_path / "resumed").glob("*.gguf"))
    unfinished = tmp_path / "resumed" / FOLDER / UNFINISHED
    (file,) = unfinished.glob("*.gguf")
    assert 0 < file.stat().st_size < len(whole)

    # A byte of the first matrix is damaged meanwhile: that one is rounded again.
    (reference,) = (tmp_path / "whole").glob("*.gguf")
    content = bytearray(file.read_bytes())
    content[GGUFReader(reference).tensors[0].data_offset] ^= 1
    file.write_bytes(content)
    del rounded[:]
    monkeypatch.setattr(streamed, "rtn", lambda *given: rounded.append(given) or rtn(*given))
    assert export("llama", "resumed", workers=1) == whole
    assert len(rounded) == 1 + N_MATRICES - 8
    assert not (tmp_path / "resumed" / FOLDER).exists()


def test_other_numbers_in_the_file_are_found_before_it_gets_its_place(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tightfit.quant.registry import get_grid

    pack = type(get_grid("Q6_K")).pack

    def wrong(grid: Grid, tensor: QuantizedTensor) -> object:
        packed = pack(grid, tensor)
        packed[-1, -1] += 1
        return packed

    monkeypatch.setattr(type(get_grid("Q6_K")), "pack", wrong)
    with pytest.raises(ArtifactError, match="reads back with other numbers"):
        export("llama", "out")
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_a_full_disk_loses_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> QuantizedTensor:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(streamed, "rtn", full)
        with pytest.raises(ArtifactError, match="the disk is full") as caught:
            export("llama", "out")
    assert "the same command goes on" in caught.value.hint
    del caught  # and with it the lock of the job
    assert export("llama", "out") == export("llama", "whole")


def test_needs_are_told_without_scratch(models: dict[str, Path], tmp_path: Path) -> None:
    notes = Notes()
    request = ExportRequest(
        model=str(models["llama"]),
        target="cpu-16gb",
        output=tmp_path / "out",
        scheme="q4_k_m",
        calibration=CalibrationOptions(source="none"),
        method=Method(algorithm=Algorithm.RTN),
    )
    result = export_module.run_export(request, notes)
    assert result.needs.scratch_bytes == 0
