"""What a job is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from tightfit.calib.calibration import CalibrationOptions
from tightfit.pipeline.quantize import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """One `tightfit export`."""

    model: str | None
    """Folder, Hub id or registered name; None: the embedded model."""
    target: str
    output: Path
    revision: str | None = None
    scheme: str = "auto"
    method: Method = field(default_factory=Method)
    context_tokens: int | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    device: str = "cpu"
    split_max_bytes: int | None = None
    overwrite: bool = False
    dry_run: bool = False
