"""The tensors that hold a quantized matrix in a file, checked against each other.

They come out as `Encoded`: the bytes as they lie there, and how to read them.

Shape legend: O output rows, I input columns, G column groups.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from tightfit.export.onnx.dequantize import Encoded
from tightfit.export.onnx.file import ELEMENT_BITS, OnnxFile

_UNSIGNED_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """The tensors of a quantized weight."""

    codes: TensorProto
    scales: TensorProto
    zeros: TensorProto | None

    @property
    def base_name(self) -> str:
        """What the parts are parts of; codes have another name in a second view of their bytes."""
        return self.scales.name.removesuffix(".scales")

    @classmethod
    def of(cls, file: OnnxFile, node: NodeProto, *, codes: int, scales: int, zeros: int) -> "Parts":
        """Those at these input positions of a node."""
        found = [stored_input(file, node, position) for position in (codes, scales)]
        if found[0] is None or found[1] is None:
            raise file.damaged(f"the codes and scales of {node.name} are not in the data file")
        return cls(codes=found[0], scales=found[1], zeros=stored_input(file, node, zeros))


def packed_rows(
    file: OnnxFile, parts: Parts, shape: tuple[int, int], bits: int, block_size: int
) -> Encoded:
    """Rows of packed bytes, as onnxruntime's own operators read them."""
    n_bytes = shape[0] * shape[1] * bits // _BITS_PER_BYTE
    codes = file.raw(parts.codes)
    if bits not in _UNSIGNED_TYPES or codes.size != n_bytes or shape[1] % block_size:
        raise file.damaged(f"{parts.codes.name} is not {shape} codes of {bits} bits")
    return Encoded(
        shape=shape,
        dtype=_UNSIGNED_TYPES[bits],
        bits=bits,
        codes=codes,
        scales=_scales(file, parts, (shape[0], shape[1] // block_size)),
        zeros=_zeros(file, parts, shape[0] * -(-shape[1] // block_size * bits // _BITS_PER_BYTE)),
        zero_rows_padded=True,
        middle_is_zero=parts.zeros is None,
        axis=1,
        block_size=block_size,
    )


def typed_rows(file: OnnxFile, parts: Parts, *, axis: int, block_size: int) -> Encoded:
    """Elements of the type that the file says, as DequantizeLinear reads them."""
    n_rows, n_columns = parts.codes.dims
    scale_shape = tuple(parts.scales.dims)
    if block_size:
        scale_shape = (n_rows, -(-n_columns // block_size))
    elif scale_shape:
        scale_shape = (n_rows,)
    # Blocks along rows are no form of ours: a chunk of rows would not have its own scales.
    if axis != (1 if block_size else 0):
        raise file.damaged(f"{parts.codes.name} is dequantized along axis {axis}")
    bits = ELEMENT_BITS[parts.codes.data_type]
    return Encoded(
        shape=(n_rows, n_columns),
        dtype=parts.codes.data_type,
        bits=bits,
        codes=file.raw(parts.codes),
        scales=_scales(file, parts, scale_shape),
        zeros=_zeros(file, parts, -(-prod(scale_shape) * bits // _BITS_PER_BYTE)),
        zero_rows_padded=False,
        middle_is_zero=False,
        axis=axis,
        block_size=block_size,
    )


def _scales(file: OnnxFile, parts: Parts, shape: tuple[int, ...]) -> NDArray[np.floating[Any]]:
    """The scales, of which QMoE's have one dimension more."""
    scales = file.array(parts.scales)
    if scales.size != prod(shape):
        raise file.damaged(f"{parts.scales.name} has {scales.size} scales and {shape} are needed")
    return scales.reshape(shape)


def _zeros(file: OnnxFile, parts: Parts, n_bytes: int) -> NDArray[np.uint8] | None:
    if parts.zeros is None:
        return None
    zeros = file.raw(parts.zeros)
    if zeros.size != n_bytes:
        raise file.damaged(f"{parts.zeros.name} has {zeros.size} bytes and {n_bytes} are needed")
    return zeros


def stored_input(file: OnnxFile, node: NodeProto, position: int) -> TensorProto | None:
    """The data file's tensor at an input of a node."""
    return file.external.get(node.input[position]) if position < len(node.input) else None
