"""What a format's writer is given: the quantized model, and why it is what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.manifest import (
    Artifact,
    EngineRecord,
    GraphRecord,
    SchemeRecord,
    TensorRecord,
    hash_file,
    weights_sha256,
)
from tightfit.export.weights import Weights
from tightfit.pipeline.job import LinearReport
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import Reporter
from tightfit.targets.plan import Plan

_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One artifact to be written."""

    request: ExportRequest
    checkpoint: Checkpoint
    plan: Plan
    method: Method
    weights: Weights
    reports: tuple[LinearReport, ...]
    calibration: CalibrationSet | None
    """None where nothing was rounded."""
    reporter: Reporter

    def relative_error(self, name: str) -> float | None:
        """Of a linear, by checkpoint name; None where nothing was rounded."""
        errors = {report.name: report.relative_error for report in self.reports}
        return errors.get(name)

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
                method=self.method.algorithm.value,
                order=self.method.gptq.order.value,
                reason=self.plan.reason,
                budget_bytes=self.plan.mix.budget_bytes if self.plan.mix else None,
                predicted_kl_nats=self.plan.mix.candidate.predicted_nats if self.plan.mix else None,
            ),
            files=tuple(hash_file(path, self.request.output) for path in files),
            bits_per_weight=stored_bytes * _BITS_PER_BYTE / count_parameters(shapes),
            weights_sha256=weights_sha256(hashes),
            tensors=tuple(tensors),
            graph=graph,
            engines=tuple(engines),
        )
