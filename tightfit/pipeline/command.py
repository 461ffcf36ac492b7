"""The command that makes an artifact again, as the manifest holds it.

Paths of the machine are left out: a folder or a file is named as it is called, in the folder where
the command is typed.
"""

from pathlib import Path

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.locate import EMBEDDED_NAME, ModelSource
from tightfit.calib.models import find_model
from tightfit.calib.precision import Precision
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.guidance import is_calibrated
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.self_traces import is_self
from tightfit.targets.workload import CacheType, Split

_UNITS = (("G", 10**9), ("M", 10**6), ("K", 10**3))


def export_command(request: ExportRequest, source: ModelSource) -> tuple[str, ...]:
    """The words after `tightfit`: what decides the bytes, and nothing else."""
    onnx = "onnx" in request.formats
    words = [
        *("export", _model(source), *_option("--revision", source.revision)),
        *_target(request),
        *("--format", ",".join(request.formats), "--scheme", request.scheme),
        *request.budget.text.split(),
        *_option("--head", request.head),
        *_option("--embedding", request.embedding),
        *("--method", request.method.algorithm.value, "--order", request.method.gptq.order.value),
        *(["--calibrate-from", "original"] if request.method.from_original else []),
        *_unless("--calib-precision", request.method.precision, Precision.MEDIUM),
        *_option("--context", request.context_tokens),
        *(["--batch", str(request.n_sequences)] if request.n_sequences > 1 else []),
        *_unless("--kv-cache", request.cache_type, CacheType.F16),
        *_unless("--split", request.split, Split.LAYER),
        *_calibration(request.calibration),
        *_unless("--device", request.device, "cpu"),
        *(["--mtp", "keep"] if request.keep_mtp else []),
        *_option("--split-max-size", _size(request.split_max_bytes)),
        *(_unless("--onnx-dialect", request.onnx_dialect, Dialect.ORT) if onnx else []),
        *(_option("--onnx-precision", request.onnx_precision) if onnx else []),
        *(_unless("--onnx-layout", request.onnx_layout, OnnxLayout.GENAI) if onnx else []),
        *_option("--also-for", ",".join(request.capabilities) or None),
    ]
    return tuple(words)


def _model(source: ModelSource) -> str:
    known = find_model(source.id)
    if source.revision is not None:
        return known.name if known else source.id
    return EMBEDDED_NAME if source.id == EMBEDDED_NAME else f"./{source.id}"


def _target(request: ExportRequest) -> list[str]:
    if request.target_file is not None:
        return ["--target-file", request.target_file.name]
    assert request.target is not None
    return ["--target", request.target]


def _calibration(options: CalibrationOptions) -> list[str]:
    kind, colon, file = options.source.rpartition("imatrix:")
    source = options.source if is_self(options.source) else f"{kind}{colon}{Path(file).name}"
    if not is_calibrated(options.source):
        return ["--calib", source]
    return [
        *("--calib", source, "--calib-samples", str(options.samples)),
        *("--calib-length", str(options.max_tokens), "--seed", str(options.seed)),
    ]


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _unless(name: str, value: str, usual: str) -> list[str]:
    return [] if value == usual else [name, str(value)]


def _size(n_bytes: int | None) -> str | None:
    if n_bytes is None:
        return None
    letter, unit = next((pair for pair in _UNITS if n_bytes % pair[1] == 0), ("B", 1))
    return f"{n_bytes // unit}{letter}"
