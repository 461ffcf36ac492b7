"""Quantized bytes to float32 by onnxruntime's DequantizeLinear, a few rows at a time.

    w = scale * (code - zero)

The bytes go as they are into a model that has nothing else in it, so every number that a check
compares was computed by software that we did not write. MatMulNBits' bytes are those of an unsigned
tensor (O, I); only its zero points are laid out otherwise (each row ends on a whole byte), and
onnxruntime itself takes the padding off.

Shape legend: O output rows, I input columns, G column groups, R rows of a chunk.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from tightfit.export.onnx.onnxruntime import require_onnxruntime

OPSET = 25
"""The first with 2-bit elements; the arithmetic is that of 23."""
IR_VERSION = 13
"""The version that opset 25 came with."""
_CHUNK_ELEMENTS = 1 << 22
"""16 MiB as float32: a session costs a few milliseconds, and this takes ten."""
_BITS_PER_BYTE = 8
_MIDDLE_BYTES: Mapping[int, int] = {
    TensorProto.UINT2: 0xAA,
    TensorProto.UINT4: 0x88,
    TensorProto.UINT8: 0x80,
}
"""A byte of codes 2**(bits-1), the zero point that MatMulNBits means when it has none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A quantized matrix as it lies in a file; arrays are views of the mapped bytes."""

    shape: tuple[int, int]
    """(O, I)."""
    dtype: int
    """`TensorProto` element type of the codes."""
    bits: int
    codes: NDArray[np.uint8]
    """Bytes of (O, I) elements, the first in the low bits."""
    scales: NDArray[np.floating[Any]]
    """(O, G), (O,) or ()."""
    zeros: NDArray[np.uint8] | None
    """Bytes of the zero points; None: 0, or the middle if `middle_is_zero`."""
    zero_rows_padded: bool
    """Whether each row of zero points ends on a whole byte."""
    middle_is_zero: bool
    axis: int
    block_size: int
    """0: one scale per row or per tensor."""

    def rows(self, start: int, stop: int) -> "Encoded":
        """A slice of the rows; the first must begin a byte."""
        n_columns = self.shape[1]
        scales = self.scales[start:stop] if self.scales.ndim else self.scales
        zeros = self.zeros
        if zeros is not None:
            n_groups = int(np.prod(self.scales.shape[1:]))
            if self.zero_rows_padded:
                row_bytes = -(-n_groups * self.bits // _BITS_PER_BYTE)
                zeros = zeros[start * row_bytes : stop * row_bytes]
            else:
                zeros = _elements(zeros, self.bits, start * n_groups, stop * n_groups)
        return replace(
            self,
            shape=(stop - start, n_columns),
            codes=_elements(self.codes, self.bits, start * n_columns, stop * n_columns),
            scales=scales,
            zeros=zeros,
        )


def dequantize(encoded: Encoded) -> Iterator[NDArray[np.float32]]:
    """float32 values of all rows, in chunks of rows from the top."""
    n_rows, n_columns = encoded.shape
    # A multiple of eight rows ends on a whole byte, whatever the bits and the width.
    rows = max(1, _CHUNK_ELEMENTS // n_columns // _BITS_PER_BYTE) * _BITS_PER_BYTE
    for start in range(0, n_rows, rows):
        yield _dequantize(encoded.rows(start, min(n_rows, start + rows)))


def _dequantize(encoded: Encoded) -> NDArray[np.float32]:
    """All rows at once."""
    scales = encoded.scales
    scale_type = helper.np_dtype_to_tensor_dtype(scales.dtype)
    initializers = [
        _tensor("codes", encoded.dtype, encoded.shape, encoded.codes.tobytes()),
        _tensor("scales", scale_type, scales.shape, scales.tobytes()),
    ]
    nodes = [helper.make_node("Cast", ["scales"], ["exact_scales"], to=TensorProto.FLOAT)]
    inputs = ["codes", "exact_scales"]
    if encoded.zeros is not None or encoded.middle_is_zero:
        inputs.append("zeros")
        tensors, steps = _zero_points(encoded)
        initializers += tensors
        nodes += steps
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            inputs,
            ["values"],
            axis=encoded.axis,
            block_size=encoded.block_size,
        )
    )
    return _run(nodes, initializers, encoded.shape)


def _zero_points(encoded: Encoded) -> tuple[list[TensorProto], list[NodeProto]]:
    """The tensors that zero points are stored in, and the nodes that make `zeros` of them."""
    shape = encoded.scales.shape
    if encoded.zeros is None:
        n_bytes = -(-encoded.scales.size * encoded.bits // _BITS_PER_BYTE)
        middles = bytes([_MIDDLE_BYTES[encoded.dtype]]) * n_bytes
        return [_tensor("zeros", encoded.dtype, shape, middles)], []
    if not encoded.zero_rows_padded:
        return [_tensor("zeros", encoded.dtype, shape, encoded.zeros.tobytes())], []
    n_rows, n_groups = shape
    padded_shape = (n_rows, encoded.zeros.size // n_rows * _BITS_PER_BYTE // encoded.bits)
    return [
        _tensor("padded", encoded.dtype, padded_shape, encoded.zeros.tobytes()),
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        helper.make_tensor("end", TensorProto.INT64, [1], [n_groups]),
        helper.make_tensor("columns", TensorProto.INT64, [1], [1]),
    ], [
        helper.make_node("Cast", ["padded"], ["wide"], to=TensorProto.UINT8),
        helper.make_node("Slice", ["wide", "first", "end", "columns"], ["cut"]),
        helper.make_node("Cast", ["cut"], ["zeros"], to=encoded.dtype),
    ]


def _tensor(name: str, dtype: int, shape: tuple[int, ...], data: bytes) -> TensorProto:
    return helper.make_tensor(name, dtype, shape, data, raw=True)


def _elements(data: NDArray[np.uint8], bits: int, start: int, stop: int) -> NDArray[np.uint8]:
    """The bytes of elements `start` to `stop`; the first begins a byte."""
    assert start * bits % _BITS_PER_BYTE == 0, (start, bits)
    return data[start * bits // _BITS_PER_BYTE : -(-stop * bits // _BITS_PER_BYTE)]


def _run(
    nodes: list[NodeProto], initializers: list[TensorProto], shape: tuple[int, int]
) -> NDArray[np.float32]:
    onnxruntime = require_onnxruntime()
    output = helper.make_tensor_value_info("values", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "dequantize", [], [output], initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Constant folding would compute the same and keep a second copy.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values: NDArray[np.float32] = session.run(None, {})[0]
    return values
