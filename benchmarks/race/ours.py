"""tightfit's walk: `python -m benchmarks.race.ours METHOD MODEL OUTPUT SEQUENCES`.

METHOD is ALGORITHM:STATES:PRECISION, such as gptq:quantized:medium, the default of `export`.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.race.measured import arguments, measured, save_weights, use_threads
from benchmarks.race.scaled import unscaled
from benchmarks.race.subject import calibration_ids
from tightfit.calib.calibration import CalibrationOptions, CalibrationSample, CalibrationSet
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.precision import Precision
from tightfit.export.weights import QuantizedWeight
from tightfit.pipeline.executors.serial import SerialExecutor
from tightfit.pipeline.fold import fold_scales
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.unit_names import model_units
from tightfit.pipeline.walk import Walk
from tightfit.pipeline.weights import quantized_weights
from tightfit.reporter import SilentReporter
from tightfit.targets.schemes.scheme import parse_scheme


def run(model: Path, output: Path, n_sequences: int, method: Method, scheme: str) -> None:
    """Quantize the blocks' linears; the rest stays as it is, as the peers leave it."""
    checkpoint = open_checkpoint(model)
    grids = parse_scheme(scheme, format="onnx", head="f32", embedding="f32")
    storage = {
        name: "F32" if stored_as == "F16" else stored_as
        for name, stored_as in grids.storage(checkpoint.architecture, checkpoint.dimensions).items()
    }
    samples = [
        CalibrationSample(ids=tuple(ids), completion_start=0)
        for ids in calibration_ids(n_sequences).tolist()
    ]
    with tempfile.TemporaryDirectory() as folder, scaled_blocks() as blocks:
        shared = Shared(
            source=checkpoint.source,
            storage=storage,
            method=method,
            calibration=CalibrationSet(samples=tuple(samples), options=CalibrationOptions()),
            folder=Path(folder),
            device="cpu",
            threads=torch.get_num_threads(),
        )
        # Loads transformers and its classes, as the peers have them loaded by now.
        shared.decoder.block(0, shared.decoder.load_block(0, checkpoint.load))
        with measured(output), SerialExecutor(shared) as executor:
            Walk(shared=shared, executor=executor).run(SilentReporter())
        weights = quantized_weights(checkpoint, storage, shared.units, model_units(shared))
        rounded = {
            name: of.values() for name, of in weights.items() if isinstance(of, QuantizedWeight)
        }
    scaled = {
        checkpoint.architecture.tensor(layer, name): values
        for layer, block in enumerate(blocks)
        for name, values in block.items()
    }
    if scaled:
        rounded = unscaled(rounded, scaled, {name: checkpoint.load(name) for name in rounded})
    save_weights(rounded, output)


@contextmanager
def scaled_blocks() -> Iterator[list[dict[str, Tensor]]]:
    """Collect each block as it is after its AWQ scales were folded in, in the walk's order."""
    blocks = []

    def folded(*arguments: Any, **settings: Any) -> Any:
        found = fold_scales(*arguments, **settings)
        blocks.append(found[0])
        return found

    with patch("tightfit.pipeline.quantize.fold_scales", folded):
        yield blocks


if __name__ == "__main__":
    use_threads()
    algorithm, start, precision = sys.argv.pop(1).split(":")
    model, output, n_sequences = arguments()
    method = Method(
        algorithm=Algorithm(algorithm),
        from_original=start == "original",
        precision=Precision(precision),
    )
    scheme = "int4-g128-asym" if method.algorithm is Algorithm.AWQ else "int4-g128"
    run(model, output, n_sequences, method, scheme)
