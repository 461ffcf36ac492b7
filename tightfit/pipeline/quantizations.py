"""One calibration and one quantization for each distinct set of grids.

Formats whose plans put every tensor on the same grid share the quantized tensors: they hold the
same numbers, and the walk runs once for them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.imatrix import Imatrix
from tightfit.export.weights import LogicalWeights
from tightfit.pipeline.conversion import convert
from tightfit.pipeline.guidance import is_calibrated
from tightfit.pipeline.job import Job, LinearReport, block_unit
from tightfit.pipeline.kv_range import KV_SCALES
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.streamed import streamed_weights
from tightfit.pipeline.unit_names import model_units
from tightfit.pipeline.walk import Walk
from tightfit.pipeline.warnings import warn_of_reports
from tightfit.pipeline.weights import FLOAT_DTYPES, checkpoint_weights, quantized_weights
from tightfit.pipeline.workers import Workers
from tightfit.reporter import Reporter
from tightfit.targets.plan import Plan
from tightfit.targets.workload import CacheType

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
    is_kept: bool = False
    """Whether the checkpoint is on these grids already."""

    @property
    def rounds(self) -> bool:
        """Whether anything has to be put on a grid."""
        on_grids = any(stored_as not in FLOAT_DTYPES for stored_as in self.storage.values())
        return on_grids and not self.is_kept

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

    weights: LogicalWeights
    reports: tuple[LinearReport, ...]
    kv_scales: Mapping[str, float] = field(default_factory=dict)
    """Static scales of an FP8 KV cache by checkpoint name; empty without one."""


def distinct_quantizations(
    plans: Sequence[Plan], method: Method, *, is_kept: bool = False
) -> list[Quantization]:
    """The quantizations that the plans need; `method` is the one to use where a scheme names none.

    Formats that share one are named together. `is_kept`: the checkpoint is quantized already, and
    the plans keep its grids.
    """
    distinct: list[Quantization] = []
    for plan in plans:
        chosen = replace(
            method,
            algorithm=Algorithm(plan.method) if plan.method else method.algorithm,
            static_inputs=plan.static_inputs,
            kv_scales=plan.setting.workload.cache_type is CacheType.FP8,
        )
        made = Quantization(
            formats=(plan.format,),
            scheme=plan.chosen.scheme,
            method=chosen,
            storage=plan.storage,
            is_kept=is_kept,
        )
        same = [n for n, other in enumerate(distinct) if other.key == made.key]
        if same:
            shared = distinct[same[0]]
            distinct[same[0]] = replace(shared, formats=(*shared.formats, plan.format))
        else:
            distinct.append(made)
    return distinct


def is_streamed(quantization: Quantization, request: ExportRequest) -> bool:
    """Whether weights are rounded while their only artifact is written, without units on disk."""
    alone = quantization.formats == ("gguf",) and request.ray_address is None
    return alone and quantization.rounds and not is_calibrated(request.calibration.source)


def run_quantization(
    quantization: Quantization,
    checkpoint: Checkpoint,
    calibration: CalibrationSet | None,
    imatrix: Imatrix | None,
    job: Job,
    workers: Workers,
    reporter: Reporter,
    *,
    streamed: bool,
) -> Quantized:
    """Run the walk, or round without calibration, or take the tensors where nothing is rounded.

    What is `streamed` is rounded later, when the writer asks for it.
    """
    storage = quantization.storage
    if not quantization.rounds:
        return Quantized(weights=checkpoint_weights(checkpoint, storage), reports=())
    shared = Shared(
        # Workers of another machine have another working directory.
        source=replace(checkpoint.source, path=checkpoint.path.resolve()),
        storage=storage,
        method=quantization.method,
        calibration=calibration,
        imatrix=imatrix,
        folder=job.folder(f"{quantization.scheme}-{quantization.digest}").resolve(),
        device=workers.device,
        threads=workers.threads,
        experts_at_once=workers.experts_at_once,
    )
    if streamed:
        return Quantized(weights=streamed_weights(shared), reports=())
    what = f"{quantization.scheme} for {', '.join(quantization.formats)}"
    with workers.executor(shared) as executor:
        if calibration is None:
            reporter.stage(f"Rounding to {what}, without calibration")
            convert(shared, executor, reporter)
        else:
            reporter.stage(
                f"Quantizing to {what} with {quantization.method.algorithm} on "
                f"{len(calibration.samples)} sequences, {calibration.tokens} tokens"
            )
            Walk(shared=shared, executor=executor).run(reporter)
    names = model_units(shared)
    reports = tuple(report for unit in names for report in shared.units.load(unit).reports)
    warn_of_reports(reports, quantization.method, reporter)
    return Quantized(
        weights=quantized_weights(checkpoint, storage, shared.units, names),
        reports=reports,
        kv_scales=_kv_scales(shared) if quantization.method.kv_scales else {},
    )


def _kv_scales(shared: Shared) -> dict[str, float]:
    """What the blocks' units hold of them."""
    architecture = shared.checkpoint.architecture
    scales: dict[str, float] = {}
    for layer in range(shared.checkpoint.dimensions.n_layers):
        plain = shared.units.load(block_unit(layer)).plain
        names = (architecture.tensor(layer, name) for name in KV_SCALES)
        scales |= {name: float(plain[name]) for name in names}
    return scales
