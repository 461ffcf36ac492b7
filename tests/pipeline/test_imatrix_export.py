"""An importance matrix of llama.cpp's guides the rounding of a whole export."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from tightfit.calib.calibration import CalibrationOptions
from tightfit.cli.main import run
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter

NAME = "blk.1.ffn_up.weight"
STORED = "model.layers.1.mlp.up_proj.weight"
HEAVY = slice(0, 64)
"""Columns that the matrix says matter."""


@pytest.fixture
def imatrix(tmp_path: Path) -> Path:
    """As llama-imatrix writes it: sums of squares and counts of what a matrix reads."""
    sums = np.full((1, 256), 1e-3, np.float32)
    sums[:, HEAVY] = 1e3
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor(f"{NAME}.in_sum2", sums)
    writer.add_tensor(f"{NAME}.counts", np.full((1, 1), 1.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "imatrix.gguf"


def errors(folder: Path, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    (file,) = folder.glob("*.gguf")
    for tensor in read_tensors(file):
        if tensor.name == NAME:
            difference = np.square(tensor.values() - weights[STORED])
            yield "heavy", float(difference[:, HEAVY].mean())
            yield "light", float(difference[:, HEAVY.stop :].mean())


def test_what_the_matrix_says_matters_is_rounded_better(
    request_for: Callable[..., ExportRequest], imatrix: Path, qwen2: Path, tmp_path: Path
) -> None:
    found = {}
    for source in ("none", f"imatrix:{imatrix}"):
        output = tmp_path / source.partition(":")[0]
        request = request_for(
            scheme="q4_0",
            output=output,
            method=Method(algorithm=Algorithm.RTN),
            calibration=CalibrationOptions(source=source),
        )
        run_export(request, SilentReporter())
        weights = {n: w.float().numpy() for n, w in load_file(qwen2 / "model.safetensors").items()}
        found[output.name] = dict(errors(output, weights))
    assert found["imatrix"]["heavy"] < found["none"]["heavy"]
    record = read_manifest(tmp_path / "imatrix").imatrix
    assert record is not None
    assert (record.name, record.datasets, record.entries) == ("imatrix.gguf", ("text.txt",), 1)
    assert run(["verify", str(tmp_path / "imatrix")]) == 0
