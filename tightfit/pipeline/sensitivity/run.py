"""Measured sensitivity: what each matrix loses on each grid, predicted and then corrected.

1. `prediction`: to second order, from gradients under the Fisher metric and real rounding errors.
2. `injection`: for each role at two depths, head and embedding: the true KL of one low grid.
3. `corrections`: the losses of a role are multiplied by the mean of measured over predicted KL.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.decoder import Decoder, WeightSource
from tightfit.files import write_text_whole
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.sensitivity.corrections import role_corrections
from tightfit.pipeline.sensitivity.injection import Injection
from tightfit.pipeline.sensitivity.prediction import Prediction
from tightfit.pipeline.sensitivity.scratch import Losses, Scratch
from tightfit.pipeline.sensitivity.subject import Subject
from tightfit.pipeline.sensitivity.tokens import choose_sequences, spread_sequences
from tightfit.records import build
from tightfit.reporter import Reporter
from tightfit.targets.allocation.sensitivity import Sensitivity

RESULT = "sensitivity.json"
MEASURED_TOKENS = 1024
"""Tokens that KL is measured on: each variant passes through the rest of the model."""


def measure_sensitivity(
    decoder: Decoder,
    source: WeightSource,
    options: Mapping[str, Sequence[str]],
    method: Method,
    calibration: CalibrationSet,
    folder: Path,
    reporter: Reporter,
) -> Sensitivity:
    """Loss of every matrix on each of its grids (`options`: checkpoint name to grid names).

    A tied head is under the embedding's name. `folder` holds finished parts and in the end the
    result: an interrupted run resumes at the next block, a finished one is read again; it belongs
    to one set of arguments, as its job directory does. AWQ's scales are left out.
    Raises `CalibrationError` and `QuantizationError` like the walk.
    """
    result = folder / RESULT
    if result.exists():
        return build(Sensitivity, json.loads(result.read_text(encoding="utf-8")))
    subject = Subject(
        decoder=decoder,
        source=source,
        options=options,
        method=method,
        sequences=choose_sequences(calibration),
    )
    n_tokens = sum(subject.lengths)
    reporter.stage(f"Measuring what every tensor loses on every grid, on {n_tokens} tokens")
    scratch = Scratch(folder, decoder.config.hidden_size)
    predicted = Prediction(subject=subject, scratch=scratch).run(reporter)
    measured = Injection(
        subject=subject,
        scratch=scratch,
        predicted=predicted,
        sequences=spread_sequences(subject.sequences, MEASURED_TOKENS),
    ).run(reporter)
    corrections = role_corrections([(subject.role(loss.tensor), loss) for loss in measured])
    sensitivity = Sensitivity(
        losses=_corrected(subject, predicted, corrections),
        corrections=corrections,
        measured=measured,
        n_tokens=n_tokens,
    )
    write_text_whole(result, json.dumps(asdict(sensitivity), indent=1))
    scratch.clear()
    return sensitivity


def _corrected(
    subject: Subject, predicted: Losses, corrections: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    return {
        name: {grid: nats * corrections.get(subject.role(name), 1.0) for grid, nats in of.items()}
        for name, of in predicted.items()
    }
