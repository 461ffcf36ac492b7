"""Weights as ONNX stores them: a quantizer's codes and scales, bit for bit, in chunks of rows.

    MatMulNBits        w = scale * (code - zero)       codes unsigned, packed along each row
    DequantizeLinear   w = scale * (code - zero)       codes packed over the whole tensor

MatMulNBits (com.microsoft) takes groups of columns of 2, 4 or 8 bits: codes uint8 (O, I/block,
block*bits/8), the first code in the low bits; zero points packed the same way along the groups of
a row, whose last byte is padded; without zero points 2**(bits-1) is meant.

DequantizeLinear (opset 23) has 4-bit, 8-bit and FP8 elements. A symmetric grid becomes signed
without a zero point (code - 2**(bits-1)), the form that TensorRT takes; an asymmetric one keeps its
unsigned codes. FP8 scales are float32 and stay so, because float16 would change the numbers: the
node's output then is float32, whatever the graph computes in.

With act-order the columns are stored sorted by group, and `order` says which activation each stored
column multiplies.

Source: ONNX operator schemas, DequantizeLinear-23; onnxruntime ContribOperators.md, MatMulNBits.

Shape legend: O output rows, I input columns, G column groups, B bytes of a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightfit.export.onnx.graph import StoredTensor
from tightfit.export.onnx.grids import dequantize_linear_grid, matmul_nbits_grid
from tightfit.export.onnx.options import Precision
from tightfit.export.weights import FloatWeight, QuantizedWeight
from tightfit.quant.grids.float8 import Float8Grid
from tightfit.quant.grids.integer import PER_CHANNEL, IntegerGrid
from tightfit.quant.tensor import QuantizedTensor

_CHUNK_ELEMENTS = 1 << 21
"""8 MiB as float32: large enough for fast writes, small beside any model."""
_FLOAT_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
_TORCH_TYPES = {Precision.FLOAT32: torch.float32, Precision.FLOAT16: torch.float16}
_INTEGER_TYPES = {  # by bits and whether symmetric
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NBits:
    """The weight inputs and attributes of a MatMulNBits node; N is O, K is I."""

    codes: StoredTensor
    """uint8 (O, G, block_size * bits / 8)."""
    scales: StoredTensor
    """(O, G) in the graph's precision."""
    zeros: StoredTensor | None
    """uint8 (O, ceil(G * bits / 8)); None: 2**(bits-1)."""
    order: StoredTensor | None
    """int64 (I,): activations are gathered by it first (act-order)."""
    bits: int
    block_size: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dequantized:
    """The inputs and attributes of a DequantizeLinear node that gives (O, I)."""

    codes: StoredTensor
    """INT4, UINT4, INT8, UINT8 or FLOAT8E4M3FN (O, I)."""
    scales: StoredTensor
    """(O, G), (O,) or (); float32 for FP8, else in the graph's precision. The node's output has
    this type."""
    zeros: StoredTensor | None
    """As the codes, in the shape of the scales; None: 0."""
    order: StoredTensor | None
    """int64 (I,): activations are gathered by it first (act-order)."""
    axis: int
    block_size: int
    """0: one scale per row or per tensor."""


class _Source:
    """Loads a weight for its codes; its scales and zero points, written next, are kept till then.

    Unpacking a matrix costs far more than it takes to keep the parameters of one.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        self._weight = weight
        self._kept: dict[str, Tensor] = {}

    def load(self) -> QuantizedTensor:
        """The whole matrix."""
        tensor = load_declared(self._weight)
        self._kept = dict(tensor.params)
        return tensor

    def param(self, name: str) -> Tensor:
        """One stored parameter."""
        kept = self._kept.pop(name, None)
        return self._weight.load().params[name] if kept is None else kept


def load_declared(weight: QuantizedWeight) -> QuantizedTensor:
    """The whole matrix; what the graph was built by must be what is loaded."""
    tensor = weight.load()
    declared_I, loaded_I = weight.group_index_I, tensor.group_index_I
    assert tensor.grid == weight.grid, (tensor.grid, weight.grid)
    assert tensor.shape == weight.shape, (tensor.shape, weight.shape)
    if declared_I is None or loaded_I is None:
        assert declared_I is loaded_I, "an act-order that the graph does not know, or the reverse"
    else:
        assert torch.equal(declared_I, loaded_I), "the graph was built for another act-order"
    return tensor


def float_tensor(name: str, weight: FloatWeight) -> StoredTensor:
    """A tensor that stays floating-point, in its own dtype."""

    def chunks() -> Iterator[memoryview]:
        values = weight.load()
        assert tuple(values.shape) == weight.shape, (name, values.shape, weight.shape)
        for rows in _row_slices(weight.shape):
            yield _raw(values[rows].to(weight.dtype))

    return StoredTensor(
        name=name, dtype=_FLOAT_TYPES[weight.dtype], shape=weight.shape, chunks=chunks
    )


def matmul_nbits(name: str, weight: QuantizedWeight, precision: Precision) -> NBits:
    """An integer grid with groups, for MatMulNBits.

    Raises `QuantizationError` for grids that the operator cannot hold.
    """
    grid = matmul_nbits_grid(weight.grid)
    n_rows, n_columns = weight.shape
    n_groups = n_columns // grid.group_size
    block_bytes = grid.group_size * grid.bits // 8
    per_byte = 8 // grid.bits
    source = _Source(weight)

    def codes() -> Iterator[memoryview]:
        for codes_RI in _sorted_codes(source.load()):
            yield _pack(codes_RI, grid.bits).data

    def zeros() -> Iterator[memoryview]:
        zero_OG = source.param("zero").numpy()
        padded_OG = np.pad(zero_OG, ((0, 0), (0, -n_groups % per_byte)))
        yield _pack(padded_OG, grid.bits).data

    return NBits(
        codes=_stored(f"{name}.codes", ir.DataType.UINT8, (n_rows, n_groups, block_bytes), codes),
        scales=_scales(name, source, (n_rows, n_groups), precision),
        zeros=None
        if grid.symmetric
        else _stored(f"{name}.zeros", ir.DataType.UINT8, (n_rows, -(-n_groups // per_byte)), zeros),
        order=_order(name, weight, grid),
        bits=grid.bits,
        block_size=grid.group_size,
    )


def dequantize_linear(name: str, weight: QuantizedWeight, precision: Precision) -> Dequantized:
    """An integer or FP8 grid, for DequantizeLinear with output (O, I).

    Raises `QuantizationError` for grids that the operator cannot hold.
    """
    grid = dequantize_linear_grid(weight.grid)
    if isinstance(grid, Float8Grid):
        return _dequantize_float8(name, weight, grid)
    n_rows, n_columns = weight.shape
    dtype = _INTEGER_TYPES[grid.bits, grid.symmetric]
    per_channel = grid.group_size == PER_CHANNEL
    scale_shape = (n_rows,) if per_channel else (n_rows, n_columns // grid.group_size)
    # Two's complement: subtracting the middle is flipping the sign bit, in the low bits.
    sign = np.uint8(1 << (grid.bits - 1)) if grid.symmetric else np.uint8(0)
    source = _Source(weight)

    def codes() -> Iterator[memoryview]:
        for codes_RI in _sorted_codes(source.load()):
            yield _pack(codes_RI ^ sign, grid.bits).data

    def zeros() -> Iterator[memoryview]:
        yield _pack(source.param("zero").numpy(), grid.bits).data

    return Dequantized(
        codes=_stored(f"{name}.codes", dtype, weight.shape, codes),
        scales=_scales(name, source, scale_shape, precision),
        zeros=None if grid.symmetric else _stored(f"{name}.zeros", dtype, scale_shape, zeros),
        order=_order(name, weight, grid),
        axis=0 if per_channel else 1,
        block_size=grid.group_size,
    )


def _dequantize_float8(name: str, weight: QuantizedWeight, grid: Float8Grid) -> Dequantized:
    n_rows, n_columns = weight.shape
    if grid.block_columns:
        scale_shape: tuple[int, ...] = (n_rows, -(-n_columns // grid.block_columns))
    else:
        scale_shape = (n_rows,) if grid.block_rows else ()
    source = _Source(weight)

    def codes() -> Iterator[memoryview]:
        tensor = source.load()
        for rows in _row_slices(weight.shape):
            yield _raw(tensor.codes_OI[rows])

    def scales() -> Iterator[memoryview]:
        scale_RC = source.param("scale")
        if grid.block_rows > 1:
            scale_RC = scale_RC.repeat_interleave(grid.block_rows, dim=0)[:n_rows]
        yield _raw(scale_RC)

    return Dequantized(
        codes=_stored(f"{name}.codes", ir.DataType.FLOAT8E4M3FN, weight.shape, codes),
        scales=_stored(f"{name}.scales", ir.DataType.FLOAT, scale_shape, scales),
        zeros=None,
        order=None,
        axis=1 if grid.block_columns else 0,
        block_size=grid.block_columns,
    )


def _scales(
    name: str, source: _Source, shape: tuple[int, ...], precision: Precision
) -> StoredTensor:
    """Float16 scales of an integer grid, which are exact in both precisions."""

    def chunks() -> Iterator[memoryview]:
        yield _raw(source.param("scale").to(_TORCH_TYPES[precision]))

    return _stored(f"{name}.scales", precision.data_type, shape, chunks)


def _order(name: str, weight: QuantizedWeight, grid: IntegerGrid) -> StoredTensor | None:
    group_index_I = None if grid.group_size == PER_CHANNEL else weight.group_index_I
    if group_index_I is None:
        return None
    assert bool((torch.bincount(group_index_I) == grid.group_size).all()), name

    def chunks() -> Iterator[memoryview]:
        yield _raw(_columns_by_group(group_index_I))

    return _stored(f"{name}.order", ir.DataType.INT64, (weight.shape[1],), chunks)


def _columns_by_group(group_index_I: Tensor) -> Tensor:
    return torch.argsort(group_index_I, stable=True)


def _sorted_codes(tensor: QuantizedTensor) -> Iterator[NDArray[np.uint8]]:
    """Chunks of rows, the columns of a group side by side."""
    group_index_I = tensor.group_index_I
    order_I = None if group_index_I is None else _columns_by_group(group_index_I)
    for rows in _row_slices(tensor.shape):
        codes_RI = tensor.codes_OI[rows]
        yield (codes_RI if order_I is None else codes_RI[:, order_I]).numpy()


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes in their order, the first in the low bits of a byte; a last byte is padded with 0."""
    per_byte = 8 // bits
    flat = codes.reshape(-1)
    whole = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    packed = whole[:, 0].copy()
    for place in range(1, per_byte):
        packed |= whole[:, place] << np.uint8(place * bits)
    return packed


def _row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first dimension, an even number of rows each, so that bytes are whole."""
    n_rows = shape[0]
    rows = max(2, _CHUNK_ELEMENTS * n_rows // max(1, int(np.prod(shape))) // 2 * 2)
    for start in range(0, n_rows, rows):
        yield slice(start, start + rows)


def _raw(values: Tensor) -> memoryview:
    """The little-endian bytes of a tensor, each element kept as it is."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stored(
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    chunks: Callable[[], Iterator[memoryview]],
) -> StoredTensor:
    return StoredTensor(name=name, dtype=dtype, shape=shape, chunks=chunks)
