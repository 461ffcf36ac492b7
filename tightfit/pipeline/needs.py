"""What an export will need, told before it starts; refused where the disk lacks the room."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import ArtifactError
from tightfit.pipeline.guidance import is_calibrated
from tightfit.pipeline.job import FOLDER
from tightfit.pipeline.quantizations import Quantization, is_streamed
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.workers import count_workers
from tightfit.targets.job_needs import (
    JobNeeds,
    JobSize,
    fitting_group,
    peak_memory_bytes,
    scratch_bytes,
    streaming_memory_bytes,
)
from tightfit.targets.memory_use import size_text
from tightfit.targets.plan import Plan


def job_size(
    quantization: Quantization,
    dimensions: ModelDimensions,
    request: ExportRequest,
    calibration: CalibrationSet | None,
) -> JobSize:
    """What the predictions depend on; of calibration that is still to be made, its largest size."""
    n_tokens: int | None = None
    if is_calibrated(request.calibration.source):
        options = request.calibration
        n_tokens = calibration.tokens if calibration else options.samples * options.max_tokens
    return JobSize(
        dimensions=dimensions,
        storage=quantization.storage,
        compensates=quantization.method.compensates,
        scales=quantization.method.scales,
        n_tokens=n_tokens,
        streamed=is_streamed(quantization, request),
    )


def predict_needs(
    plans: Sequence[Plan],
    quantizations: Sequence[Quantization],
    request: ExportRequest,
    calibration: CalibrationSet | None = None,
) -> JobNeeds:
    """Of the whole export; raises `UsageError` where `--max-memory` is too little."""
    peaks, scratch = [], 0
    for quantization in quantizations:
        size = job_size(quantization, plans[0].setting.dimensions, request, calibration)
        group = fitting_group(size, request.max_memory_bytes)
        peaks.append(
            streaming_memory_bytes(size, count_workers(request, size))
            if size.streamed
            else peak_memory_bytes(size, group)
        )
        stored = max(p.chosen.file_bytes for p in plans if p.format in quantization.formats)
        # Blocks that wait for nobody are begun as workers are free, and one ahead.
        n_open = (request.workers or 1) + 1 if quantization.method.from_original else 1
        scratch += scratch_bytes(size, stored, n_open)
    return JobNeeds(
        peak_memory_bytes=max(peaks),
        scratch_bytes=scratch,
        output_bytes=sum(plan.chosen.file_bytes for plan in plans),
    )


def check_disk(needs: JobNeeds, output: Path) -> None:
    """Raise `ArtifactError` when the disk cannot hold scratch files and result."""
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    # What an interrupted job left is part of what it needs.
    left = sum(file.stat().st_size for file in (output / FOLDER).rglob("*") if file.is_file())
    needed = needs.scratch_bytes + needs.output_bytes - left
    if needed > free:
        raise ArtifactError(
            f"the export needs {size_text(needed)} of disk and {there} has {size_text(free)} free",
            allowed=f"{size_text(needs.scratch_bytes)} for unfinished work, "
            f"{size_text(needs.output_bytes)} for the result",
            hint="free some space, or choose another folder with -o",
        )
