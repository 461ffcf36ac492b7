"""What a job is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from tightfit.calib.calibration import CalibrationOptions
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.pipeline.quantize import Method
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.workload import CacheType, Split


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """One `tightfit export`."""

    model: str | None
    """Folder, Hub id or registered name; None: the embedded model."""
    target: str | None
    """Name of a target; None: `target_file`."""
    output: Path
    target_file: Path | None = None
    """A profile of the user's own."""
    revision: str | None = None
    formats: tuple[str, ...] = ("gguf",)
    """In the order in which they are written."""
    scheme: str = "auto"
    """For all formats; `auto` is each format's own mix of grids."""
    budget: Budget = field(default_factory=Budget)
    """Limit of the user's for `auto`; without one, the target's room."""
    head: str | None = None
    """Grid or float type of the output head; None: as the scheme says."""
    embedding: str | None = None
    method: Method = field(default_factory=Method)
    context_tokens: int | None = None
    n_sequences: int = 1
    cache_type: CacheType = CacheType.F16
    split: Split = Split.LAYER
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    device: str = "cpu"
    max_memory_bytes: int | None = None
    """Of main memory, for all processes on this machine; None: no limit."""
    workers: int | None = None
    """Processes on this machine; None: as many as help."""
    ray_address: str | None = None
    """Of a Ray cluster that does the work."""
    keep_mtp: bool = False
    """Whether multi-token-prediction layers go into the artifact."""
    split_max_bytes: int | None = None
    onnx_dialect: Dialect = Dialect.ORT
    onnx_precision: Precision | None = None
    """None: float16 for a GPU, float32 for a CPU."""
    onnx_layout: OnnxLayout = OnnxLayout.GENAI
    capabilities: tuple[str, ...] = ()
    """Compute capabilities that the engine is also built for, beside the target's own."""
    overwrite: bool = False
    dry_run: bool = False
