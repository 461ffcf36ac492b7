"""Parity accepts the runtime's own rounding and refuses a file whose tensors are mixed up."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from tightfit.calib.calibration import CalibrationOptions
from tightfit.export.gguf.readback import StoredTensor
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.verify import parity
from tightfit.verify.parity import measure_parity, relative_limit

SWAPS = [("blk.1.ffn_gate", "blk.1.ffn_up"), ("blk.1.attn_norm", "blk.1.ffn_norm")]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bits: the coarsest file, of a random model, whose flat logits hide much in the KL."""
    folder = tmp_path_factory.mktemp("parity")
    request = ExportRequest(
        model=str(make_checkpoint(folder / "model", "llama")),
        target="rtx3060-8gb",
        output=folder / "out",
        scheme="q2_k",
        method=Method(algorithm=Algorithm.RTN),
        calibration=CalibrationOptions(samples=8, max_tokens=64),
    )
    manifest = run_export(request, SilentReporter()).manifest
    assert manifest is not None
    return request.output / manifest.artifacts[0].files[0].name


def test_the_right_file_passes(gguf: Path) -> None:
    measured = measure_parity(gguf.parent, gguf)

    assert measured.passed
    assert 0 < measured.relative_difference < 0.75 * relative_limit(2)
    assert measured.mean_abs_difference < measured.max_abs_difference


@pytest.mark.parametrize("swap", SWAPS)
def test_two_tensors_in_each_others_place_fail(
    swap: tuple[str, str], gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_tensors = parity.read_tensors

    def swapped(path: Path) -> Iterator[StoredTensor]:
        tensors = {tensor.name: tensor for tensor in read_tensors(path)}
        one, two = (f"{name}.weight" for name in swap)
        tensors[one], tensors[two] = tensors[two], tensors[one]
        for name, tensor in tensors.items():
            yield dataclasses.replace(tensor, name=name)

    monkeypatch.setattr(parity, "read_tensors", swapped)

    measured = measure_parity(gguf.parent, gguf)

    assert not measured.passed
    assert measured.mean_kl_nats < 0.01, "a bound on KL alone would let this pass"
