"""Which grids a graph can hold, by name alone: asked before hours of quantizing, and when built.

    MatMulNBits, GatherBlockQuantized   integers of 2, 4, 8 bits in groups (dialect `ort`)
    DequantizeLinear                    integers of 4, 8 bits in groups or by row, FP8
    QMoE                                integers of 4 bits in groups, one grid for all of a layer's
                                        experts, no act-order (dialect `ort`)

Source: onnxruntime ContribOperators.md; ONNX operator schemas, DequantizeLinear-23.
"""

from collections.abc import Iterable, Mapping

from tightfit.calib.architecture import Architecture
from tightfit.errors import QuantizationError
from tightfit.export.onnx.options import Dialect, OnnxOptions
from tightfit.quant.grid import Grid
from tightfit.quant.grids.float8 import Float8Grid
from tightfit.quant.grids.integer import PER_CHANNEL, IntegerGrid
from tightfit.quant.registry import GRIDS, get_grid

_MATMUL_NBITS_BITS = (2, 4, 8)
"""Widths that onnxruntime has kernels for."""
_DEQUANTIZE_LINEAR_BITS = (4, 8)
"""Integer element widths of opset 23."""
QMOE_BITS = 4
"""The one width that onnxruntime's CPU computes without rounding the activations."""
_NARROW_BITS, _WIDE_BITS = 2, 4
"""kv_b_proj is dequantized, and opset 23 has no element type for the first."""
_EXPERTS = ".experts."
"""In the name of a routed expert's matrix, behind what all of a layer's have in common."""
_KV_EXPANSION = ".kv_b_proj."
"""In the name of the one matrix that is never a MatMulNBits."""


def check_storage(
    storage: Mapping[str, str],
    architecture: Architecture,
    options: OnnxOptions,
    *,
    act_order: bool = False,
) -> None:
    """Raise the `QuantizationError` that `build_graph` would, before anything is quantized.

    `storage` is the grid or float type of every tensor by checkpoint name; `act_order` says whether
    the linears in groups will have their columns regrouped.
    """
    experts: dict[str, list[str]] = {}
    for name, stored_as in storage.items():
        if _EXPERTS in name:
            experts.setdefault(name.partition(_EXPERTS)[0], []).append(stored_as)
        if stored_as not in GRIDS:
            continue
        if name == architecture.embedding:
            check_embedding(stored_as, options.dialect)
        elif _KV_EXPANSION in name:
            dequantize_linear_grid(wide_grid(stored_as))
        else:
            check_linear(stored_as, options.dialect)
    if act_order and options.dialect is Dialect.ORT:
        for layer, grids in experts.items():
            if qmoe_grid(grids) is not None:
                raise act_order_refusal(f"{layer}{_EXPERTS}*")


def check_linear(grid: str, dialect: Dialect) -> None:
    """Raise `QuantizationError` when the dialect has no linear with this grid's numbers."""
    if packs_bits(grid, dialect):
        matmul_nbits_grid(grid)
    else:
        dequantize_linear_grid(grid)


def check_embedding(grid: str, dialect: Dialect) -> None:
    """Raise `QuantizationError` when the dialect cannot fetch rows of this grid."""
    check_linear(grid, dialect)
    if dialect is Dialect.ORT and not packs_bits(grid, dialect):
        raise QuantizationError(
            f"onnxruntime has no operator that fetches embedding rows of the grid {grid}",
            allowed="embedding grids of the dialect ort: int{2,4,8}-g{32,64,128}-{sym,asym}, or a "
            "float type",
            hint="choose such a grid for the embedding, or --onnx-dialect standard",
        )


def packs_bits(grid: str, dialect: Dialect) -> bool:
    """Whether the dialect stores the grid for MatMulNBits and GatherBlockQuantized."""
    found = get_grid(grid)
    return (
        dialect is Dialect.ORT
        and isinstance(found, IntegerGrid)
        and found.group_size != PER_CHANNEL
    )


def matmul_nbits_grid(name: str) -> IntegerGrid:
    """The grid; raises `QuantizationError` where MatMulNBits cannot hold it."""
    grid = get_grid(name)
    if (
        isinstance(grid, IntegerGrid)
        and grid.bits in _MATMUL_NBITS_BITS
        and grid.group_size != PER_CHANNEL
    ):
        return grid
    raise _refusal(grid, "MatMulNBits", "int{2,4,8}-g{32,64,128}-{sym,asym}")


def dequantize_linear_grid(name: str) -> IntegerGrid | Float8Grid:
    """The grid; raises `QuantizationError` where DequantizeLinear cannot hold it."""
    grid = get_grid(name)
    if isinstance(grid, Float8Grid):
        return grid
    if isinstance(grid, IntegerGrid) and grid.bits in _DEQUANTIZE_LINEAR_BITS:
        return grid
    allowed = "int{4,8}-{g32,g64,g128,channel}-{sym,asym}, fp8-e4m3-{tensor,channel,block128}"
    raise _refusal(grid, "DequantizeLinear", allowed)


def qmoe_grid(stored_as: Iterable[str]) -> IntegerGrid | None:
    """The one grid of all of a layer's experts if QMoE holds it exactly, else None."""
    names = set(stored_as)
    grid = GRIDS.get(names.pop()) if len(names) == 1 else None
    if isinstance(grid, IntegerGrid) and grid.bits == QMOE_BITS and grid.group_size != PER_CHANNEL:
        return grid
    return None


def act_order_refusal(name: str) -> QuantizationError:
    """What to raise for experts in QMoE with act-order."""
    return QuantizationError(
        f"{name} is quantized with act-order, which onnxruntime's QMoE does not know",
        allowed="experts with groups of neighbouring columns",
        hint="quantize again without act-order (static groups), or choose another format",
    )


def wide_grid(name: str) -> str:
    """The grid of twice the bits for integers of 2, which DequantizeLinear has no type for."""
    grid = get_grid(name)
    if not isinstance(grid, IntegerGrid) or grid.bits != _NARROW_BITS:
        return name
    return name.replace(f"int{_NARROW_BITS}", f"int{_WIDE_BITS}")


def _refusal(grid: Grid, operator: str, allowed: str) -> QuantizationError:
    return QuantizationError(
        f"ONNX's {operator} cannot hold the numbers of the grid {grid.name}",
        allowed=f"grids that it holds exactly: {allowed}",
        hint="choose such a scheme, for example --scheme gptq-int4-g128",
    )
