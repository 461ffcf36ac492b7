"""What an export refuses before it computes or downloads anything."""

from collections.abc import Sequence

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.export.gguf.deepseek2 import check_deepseek2
from tightfit.export.onnx.grids import check_storage
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.onnxruntime import require_onnxruntime
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.guidance import check_guidance
from tightfit.pipeline.onnx_artifact import graph_options, onnx_paths
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.tensorrt_artifact import check_tensorrt
from tightfit.pipeline.weights import FLOAT_DTYPES
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.grids.integer import PER_CHANNEL, IntegerGrid
from tightfit.quant.registry import get_grid
from tightfit.runtimes.tensorrt.package import Package, check_package
from tightfit.targets.allocation.budget import check_budget
from tightfit.targets.plan import Plan

ACT_ORDER_FORMATS = ("onnx", "gptq")


def check_options(request: ExportRequest) -> None:
    """Raise `UsageError` for an option of a format that is not asked for, or a wrong budget."""
    check_budget(request.budget)
    _check_workers(request)
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


def _check_workers(request: ExportRequest) -> None:
    if request.ray_address is None:
        return
    if request.workers is not None:
        raise UsageError(
            f"--workers {request.workers} does not go with --ray",
            allowed="a cluster has as many workers as its machines have room for",
            hint="leave --workers out; OMP_NUM_THREADS says how many threads a worker has",
        )
    if ":" in request.device:
        raise UsageError(
            f"--device {request.device} does not go with --ray",
            allowed="cpu or cuda: Ray gives each worker a GPU of its own",
            hint=f"--device {request.device.partition(':')[0]}",
        )


def check_packages(formats: Sequence[str]) -> None:
    """Raise `MissingPackageError` when a format needs an extra that is not installed."""
    if set(formats) & {"onnx", "tensorrt"}:
        require_onnxruntime()
    if "tensorrt" in formats:
        check_package(Package.RTX)


def check_plan(request: ExportRequest, plan: Plan, dimensions: ModelDimensions) -> None:
    """Raise for what cannot be exported although it can be planned.

    `UsageError` or `QuantizationError`: the plan's format cannot do it. `CheckpointError`: its
    runtime would compute this model otherwise.
    """
    architecture = architecture_of(dimensions.model_type)
    if plan.format == "gguf" and dimensions.mla is not None:
        check_deepseek2(dimensions)
    check_guidance(request, plan.method or request.method.algorithm)
    act_order = request.method.gptq.order is Order.ACT_ORDER
    if act_order:
        _check_act_order(plan)
    if plan.format == "onnx":
        onnx_paths(request, plan)  # refuses a scheme that the layout has no name for
        options = graph_options(request, plan)
        check_storage(plan.storage, architecture, options, act_order=act_order)
    if plan.format == "tensorrt":
        check_tensorrt(request, plan, dimensions.model_type)


def _check_act_order(plan: Plan) -> None:
    if plan.format not in ACT_ORDER_FORMATS:
        raise UsageError(
            f"--order act-order does not go with --format {plan.format}",
            allowed="act-order reorders the columns, which ONNX (as a Gather) and gptq (as g_idx) "
            "can store",
            hint="--order static has the lower error, and every format holds it",
        )
    for stored_as in set(plan.storage.values()) - FLOAT_DTYPES.keys():
        grid = get_grid(stored_as)
        if not isinstance(grid, IntegerGrid) or grid.group_size == PER_CHANNEL:
            raise UsageError(
                f"--order act-order does not go with the grid {stored_as}",
                allowed="integer grids in groups, such as int4-g128: act-order regroups columns",
                hint="--order static works on every grid",
            )
