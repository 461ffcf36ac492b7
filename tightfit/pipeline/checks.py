"""What an export refuses before it computes or downloads anything."""

from collections.abc import Sequence

from tightfit.errors import UsageError
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.onnxruntime import require_onnxruntime
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.onnx_artifact import onnx_paths
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.tensorrt_artifact import check_tensorrt
from tightfit.quant.algorithms.ordering import Order
from tightfit.runtimes.tensorrt.package import Package, check_package
from tightfit.targets.plan import Plan


def check_options(request: ExportRequest) -> None:
    """Raise `UsageError` for an option of a format that is not asked for."""
    given = {
        "--split-max-size": ("gguf", request.split_max_bytes is not None),
        "--onnx-dialect": ("onnx", request.onnx_dialect is not Dialect.ORT),
        "--onnx-precision": ("onnx", request.onnx_precision is not None),
        "--onnx-layout": ("onnx", request.onnx_layout is not OnnxLayout.GENAI),
        "--also-for": ("tensorrt", bool(request.capabilities)),
    }
    for option, (format_, is_given) in given.items():
        if is_given and format_ not in request.formats:
            raise UsageError(
                f"{option} is for --format {format_}, which is not asked for",
                allowed=f"formats of this export: {', '.join(request.formats)}",
                hint=f"add {format_} to --format, or leave {option} out",
            )


def check_packages(formats: Sequence[str]) -> None:
    """Raise `MissingPackageError` when a format needs an extra that is not installed."""
    if set(formats) & {"onnx", "tensorrt"}:
        require_onnxruntime()
    if "tensorrt" in formats:
        check_package(Package.RTX)


def check_plan(request: ExportRequest, plan: Plan, model_type: str) -> None:
    """Raise `UsageError` for what the plan's format cannot do."""
    if plan.format != "onnx" and request.method.gptq.order is Order.ACT_ORDER:
        raise UsageError(
            f"--order act-order does not go with --format {plan.format}",
            allowed="act-order reorders the columns, which only ONNX can store (as a Gather)",
            hint="--order static has the lower error, and every format holds it",
        )
    if plan.format == "onnx":
        onnx_paths(request, plan)  # refuses a scheme that the layout has no name for
    if plan.format == "tensorrt":
        check_tensorrt(request, plan, model_type)
