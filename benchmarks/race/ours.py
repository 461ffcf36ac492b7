"""tightfit's walk: `python -m benchmarks.race.ours MODEL OUTPUT SEQUENCES`."""

import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.race.measured import arguments, measured, save_weights
from benchmarks.race.subject import calibration_ids
from tightfit.calib.calibration import CalibrationOptions, CalibrationSample, CalibrationSet
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.export.weights import QuantizedWeight
from tightfit.pipeline.executors.serial import SerialExecutor
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
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(
            source=checkpoint.source,
            storage=storage,
            method=method,
            calibration=CalibrationSet(samples=tuple(samples), options=CalibrationOptions()),
            folder=Path(folder),
            device="cpu",
            threads=torch.get_num_threads(),
        )
        with measured(output), SerialExecutor(shared) as executor:
            Walk(shared=shared, executor=executor).run(SilentReporter())
        weights = quantized_weights(checkpoint, storage, shared.units, model_units(shared))
        save_weights(
            {name: of.values() for name, of in weights.items() if isinstance(of, QuantizedWeight)},
            output,
        )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    algorithm, start = sys.argv.pop(1).split(":")
    model, output, n_sequences = arguments()
    method = Method(algorithm=Algorithm(algorithm), from_original=start == "original")
    scheme = "int4-g128-asym" if method.algorithm is Algorithm.AWQ else "int4-g128"
    run(model, output, n_sequences, method, scheme)
