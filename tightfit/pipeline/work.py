"""What a format's writer is given: the quantized model, and why it is what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tightfit.calib.architecture import Architecture
from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.logical import logical_name
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.manifest import (
    KEPT,
    Artifact,
    EngineRecord,
    ExpertsRecord,
    GraphRecord,
    ImatrixRecord,
    SchemeRecord,
    TensorRecord,
    hash_file,
    weights_sha256,
)
from tightfit.export.weights import LogicalWeights
from tightfit.pipeline.job import LinearReport
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import Reporter
from tightfit.targets.plan import Plan

_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One artifact to be written."""

    request: ExportRequest
    checkpoint: Checkpoint
    plan: Plan
    method: Method
    weights: LogicalWeights
    reports: tuple[LinearReport, ...]
    is_kept: bool
    """Whether the checkpoint was quantized already, and its numbers are kept."""
    kv_scales: Mapping[str, float]
    """Of an FP8 KV cache, by checkpoint name; empty without one."""
    calibration: CalibrationSet | None
    """None where nothing was rounded, or without one."""
    threads: int
    """That round, pack and check tensors at the same time."""
    unfinished: Path | None
    """Where a file that is interrupted waits for the same command; None: its weights are kept in
    units, and it is soon written anew."""
    imatrix: ImatrixRecord | None
    """What guided the rounding in its place."""
    reporter: Reporter

    @cached_property
    def relative_errors(self) -> Mapping[str, float]:
        """Of what was calibrated, by logical name; of a stack of experts their mean."""
        found: dict[str, list[float]] = {}
        for report in self.reports:
            found.setdefault(logical_name(report.name), []).append(report.relative_error)
        return {name: sum(errors) / len(errors) for name, errors in found.items()}

    def record(
        self,
        *,
        files: Sequence[Path],
        tensors: Sequence[TensorRecord],
        hashes: Mapping[str, str],
        stored_bytes: int,
        graph: GraphRecord | None = None,
        engines: Sequence[EngineRecord] = (),
    ) -> Artifact:
        """The artifact's entry in the manifest; `hashes` are of the values by checkpoint name."""
        shapes = tensor_shapes(self.checkpoint.architecture, self.checkpoint.dimensions)
        return Artifact(
            format=self.plan.format,
            scheme=SchemeRecord(
                name=self.plan.chosen.scheme,
                method=KEPT if self.is_kept else self.method.algorithm.value,
                order=self.method.gptq.order.value,
                reason=self.plan.reason,
                calibrate_from="original" if self.method.from_original else "quantized",
                budget_bytes=self.plan.mix.budget_bytes if self.plan.mix else None,
                predicted_kl_nats=self.plan.mix.candidate.predicted_nats if self.plan.mix else None,
            ),
            files=tuple(hash_file(path, self.request.output) for path in files),
            bits_per_weight=stored_bytes * _BITS_PER_BYTE / count_parameters(shapes),
            weights_sha256=weights_sha256(hashes),
            tensors=tuple(tensors),
            graph=graph,
            engines=tuple(engines),
            experts=experts_records(self.reports, self.checkpoint.architecture),
        )


def experts_records(
    reports: Sequence[LinearReport], architecture: Architecture
) -> tuple[ExpertsRecord, ...]:
    """The tables of tokens by layer, from what was said of every expert's input."""
    found: dict[int, list[LinearReport]] = {}
    for report in reports:
        if report.tokens is not None and ".gate_proj." in report.name:
            layer = int(report.name.removeprefix(architecture.block_prefix).partition(".")[0])
            found.setdefault(layer, []).append(report)
    return tuple(
        ExpertsRecord(
            layer=layer,
            tokens=tuple(report.tokens or 0 for report in of),
            own_share=tuple(round(report.own_share or 0.0, 4) for report in of),
        )
        for layer, of in found.items()
    )
