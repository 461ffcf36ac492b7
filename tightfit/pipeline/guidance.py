"""What rounding is guided by: calibration sequences, somebody's importance matrix, or nothing."""

from dataclasses import dataclass
from pathlib import Path

from tightfit.calib.calibration import CalibrationSet, load_calibration
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.imatrix import Imatrix, read_imatrix
from tightfit.calib.locate import EMBEDDED_NAME
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.errors import UsageError
from tightfit.export.manifest import ImatrixRecord, hash_file
from tightfit.pipeline.quantize import Algorithm
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.self_traces import is_self
from tightfit.reporter import Reporter

NONE = "none"
_IMATRIX = "imatrix:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """What is known before the job begins."""

    calibration: CalibrationSet | None = None
    """None also for the model's own traces, which the job makes."""
    imatrix: Imatrix | None = None
    imatrix_record: ImatrixRecord | None = None


def is_calibrated(source: str) -> bool:
    """Whether `--calib` asks for passing sequences through the model."""
    return source != NONE and not source.startswith(_IMATRIX)


def check_guidance(request: ExportRequest, algorithm: str) -> None:
    """Raise `UsageError` for an algorithm that needs the activations that there will not be."""
    source = request.calibration.source
    if is_calibrated(source):
        return
    if request.method.from_original:
        raise UsageError(
            f"--calibrate-from original does not go with --calib {source}",
            allowed="it says what the calibration passes through, and there is none",
            hint="leave --calibrate-from out",
        )
    if algorithm == Algorithm.RTN:
        return
    raise UsageError(
        f"--calib {source} gives no activations, and {algorithm} needs them",
        allowed="without calibration: --method rtn, and schemes that name no other method",
        hint="leave --method out, or calibrate: --calib self:n=64 or a file of yours",
    )


def read_guidance(request: ExportRequest, checkpoint: Checkpoint, reporter: Reporter) -> Guidance:
    """Read the file that `--calib` names, or the embedded set."""
    options = request.calibration
    if options.source.startswith(_IMATRIX):
        path = Path(options.source.removeprefix(_IMATRIX))
        imatrix = read_imatrix(path, checkpoint.architecture, checkpoint.dimensions)
        for remark in imatrix.remarks:
            reporter.warning(remark)
        record = ImatrixRecord(
            name=path.name,
            sha256=hash_file(path).sha256,
            datasets=imatrix.datasets,
            entries=len(imatrix.entries),
            chunks=imatrix.n_chunks,
        )
        return Guidance(imatrix=imatrix, imatrix_record=record)
    if options.source == NONE or is_self(options.source):
        return Guidance()
    if options.source == "embedded" and checkpoint.source.id != EMBEDDED_NAME:
        reporter.warning(
            "the embedded calibration set is small-number arithmetic, made for tiny-r1: for a "
            "real model use its own reasoning (--calib self:n=64) or a file of yours"
        )
    return Guidance(calibration=load_calibration(load_tokenizer(checkpoint.path), options))
