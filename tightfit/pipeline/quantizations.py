"""One calibration and one quantization for each distinct set of grids.

Formats whose plans put every tensor on the same grid share the quantized tensors: they hold the
same numbers, and the walk runs once for them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.export.weights import Weights
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.job import Job, LinearReport
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.walk import Walk
from tightfit.pipeline.weights import FLOAT_DTYPES, checkpoint_weights, quantized_weights
from tightfit.quant.registry import get_grid
from tightfit.reporter import Reporter
from tightfit.targets.plan import Plan

_DIGEST_LETTERS = 8
"""Enough to tell a handful apart, in the name of a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What one walk makes, and for whom."""

    formats: tuple[str, ...]
    scheme: str
    method: Method
    storage: Mapping[str, str]
    """Grid or float type of every tensor by checkpoint name."""

    @property
    def rounds(self) -> bool:
        """Whether anything has to be put on a grid."""
        return any(stored_as not in FLOAT_DTYPES for stored_as in self.storage.values())

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the bytes of its units, beside the checkpoint and the calibration."""
        return {"storage": dict(self.storage), "method": asdict(self.method)}

    @property
    def digest(self) -> str:
        """Tells quantizations apart that share scheme and algorithm, but not all of the storage."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[
            :_DIGEST_LETTERS
        ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantized:
    """The outcome."""

    weights: Weights
    reports: tuple[LinearReport, ...]


def distinct_quantizations(plans: Sequence[Plan], method: Method) -> list[Quantization]:
    """The quantizations that the plans need; `method` is the one to use where a scheme names none.

    Formats that share one are named together.
    """
    distinct: list[Quantization] = []
    for plan in plans:
        chosen = replace(
            method,
            algorithm=Algorithm(plan.method) if plan.method else method.algorithm,
            static_inputs=plan.static_inputs,
        )
        made = Quantization(
            formats=(plan.format,), scheme=plan.chosen.scheme, method=chosen, storage=plan.storage
        )
        same = [n for n, other in enumerate(distinct) if other.key == made.key]
        if same:
            shared = distinct[same[0]]
            distinct[same[0]] = replace(shared, formats=(*shared.formats, plan.format))
        else:
            distinct.append(made)
    return distinct


def run_quantization(
    quantization: Quantization,
    checkpoint: Checkpoint,
    calibration: CalibrationSet | None,
    job: Job,
    device: str,
    reporter: Reporter,
) -> Quantized:
    """Run the walk, or take the checkpoint's tensors where nothing is rounded."""
    storage = quantization.storage
    if not quantization.rounds:
        return Quantized(weights=checkpoint_weights(checkpoint, storage), reports=())
    assert calibration is not None, "what is rounded is calibrated"
    algorithm = quantization.method.algorithm
    reporter.stage(
        f"Quantizing to {quantization.scheme} with {algorithm} for "
        f"{', '.join(quantization.formats)} on {len(calibration.samples)} sequences, "
        f"{calibration.tokens} tokens"
    )
    units = job.units(f"{quantization.scheme}-{algorithm}-{quantization.digest}")
    walk = Walk(
        decoder=Decoder(checkpoint.path, checkpoint.architecture, usable_device(device)),
        source=checkpoint.load,
        grids={
            name: get_grid(stored_as)
            for name, stored_as in storage.items()
            if stored_as not in FLOAT_DTYPES
        },
        plain_dtype=_plain_dtype(checkpoint, storage),
        method=quantization.method,
        calibration=calibration,
        units=units,
    )
    walk.run(reporter)
    reports = tuple(report for unit in walk.unit_names for report in units.load(unit).reports)
    for report in reports:
        _warn(report, quantization.method, reporter)
    weights = quantized_weights(checkpoint, storage, units, walk.unit_names)
    return Quantized(weights=weights, reports=reports)


def _plain_dtype(checkpoint: Checkpoint, storage: Mapping[str, str]) -> torch.dtype:
    """How norms and biases are stored: all alike, and the final norm is one of them."""
    return FLOAT_DTYPES[storage[checkpoint.architecture.final_norm]]


def _warn(report: LinearReport, method: Method, reporter: Reporter) -> None:
    asked = method.gptq.damp_fraction
    if report.damp is not None and report.damp > asked:
        reporter.warning(
            f"{report.name}: its Hessian needed damping {report.damp:g} instead of {asked:g}; "
            "more calibration text would help"
        )
    if report.dead_columns:
        reporter.warning(
            f"{report.name}: input channels that no token made active: {report.dead_columns}"
        )
