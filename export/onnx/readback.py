"""Read ONNX files back, through the `onnx` package and onnxruntime.

How each weight is stored is read from the graph: from the node that consumes its codes and that
node's attributes, not from what we meant to write. Weights are given one at a time and dequantized
when asked for, some rows at a time.

Shape legend: O output rows, I input columns, G column groups, E experts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tightfit.export.onnx.dequantize import Encoded, dequantize
from tightfit.export.onnx.file import ELEMENT_BITS, OnnxFile

_WEIGHT_ENDINGS = (".weight", "bias")
"""Of checkpoint names; tables that a graph needs besides (rope) have others."""
_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_UNSIGNED_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_CHUNK_ELEMENTS = 1 << 22
"""16 MiB as float32."""
_BITS_PER_BYTE = 8
_EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Matrices of an expert whose rows take turns in what QMoE reads."""

Attributes = Mapping[str, Any]
Chunks = Iterator[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredWeight:
    """A weight as the file holds it."""

    name: str
    """Checkpoint name."""
    stored_as: str
    """The operator that reads it, with its attributes: `MatMulNBits 4 bits, blocks of 128`."""
    shape: tuple[int, ...]
    """Rows before columns."""
    chunks: Callable[[], Chunks]
    """float32 values, some rows at a time from the top, columns in the checkpoint's order."""

    def values(self) -> NDArray[np.float32]:
        """float32 in `shape`."""
        values = np.empty(self.shape, dtype=np.float32)
        end = 0
        for chunk in self.chunks():
            values[end : end + len(chunk)] = chunk
            end += len(chunk)
        assert end == self.shape[0], self.name
        return values


def read_weights(path: Path) -> Iterator[StoredWeight]:
    """Every weight of a model once: quantized ones in the order of their nodes, then floats.

    Raises `ArtifactError` when the file or its data file is damaged.
    """
    file = OnnxFile(path)
    seen: set[tuple[str, int]] = set()
    for node in file.graph.node:
        form = _FORMS.get(node.op_type)
        codes = None if form is None else _input(file, node, form.codes)
        if form is None or codes is None:
            continue
        # A tied head is another view of the embedding's bytes.
        if file.place(codes) not in seen:
            seen.add(file.place(codes))
            yield from _read(file, node, form)
    for tensor in file.external.values():
        if tensor.data_type in _FLOAT_TYPES and tensor.name.endswith(_WEIGHT_ENDINGS):
            yield _float_weight(file, tensor)


def read_input_scales(path: Path) -> dict[str, float]:
    """Static FP8 scales of what linears read, by the checkpoint name of the linear's weight."""
    graph = OnnxFile(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scales = (node.input[1] for node in graph.node if node.op_type == "QuantizeLinear")
    return {
        name.removesuffix(".input_scale"): float(numpy_helper.to_array(constants[name]))
        for name in scales
    }


def _read(file: OnnxFile, node: NodeProto, form: "_Form") -> Iterator[StoredWeight]:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    try:
        yield from form.read(file, node, attributes)
    except KeyError as error:
        raise file.damaged(f"{node.name} lacks {error}") from error


def _float_weight(file: OnnxFile, tensor: TensorProto) -> StoredWeight:
    values = file.array(tensor)

    def chunks() -> Chunks:
        rows = max(1, _CHUNK_ELEMENTS * len(values) // max(1, values.size))
        for start in range(0, len(values), rows):
            yield values[start : start + rows].astype(np.float32)

    return StoredWeight(
        name=tensor.name, stored_as=_type_name(tensor), shape=values.shape, chunks=chunks
    )


def _matmul_nbits(
    file: OnnxFile, node: NodeProto, attributes: Attributes
) -> Iterator[StoredWeight]:
    bits, block_size = attributes["bits"], attributes["block_size"]
    parts = _Parts.of(file, node, codes=1, scales=2, zeros=3)
    shape = (attributes["N"], attributes["K"])
    yield _weight(
        file,
        parts.base_name,
        f"MatMulNBits {bits} bits, blocks of {block_size}",
        _packed_rows(file, parts, shape, bits, block_size),
    )


def _gather_block_quantized(
    file: OnnxFile, node: NodeProto, attributes: Attributes
) -> Iterator[StoredWeight]:
    parts = _Parts.of(file, node, codes=0, scales=2, zeros=3)
    block_size = attributes["block_size"]
    if parts.codes.data_type == TensorProto.UINT8:
        bits = attributes["bits"]
        n_rows, row_bytes = parts.codes.dims
        shape = (n_rows, row_bytes * _BITS_PER_BYTE // bits)
        encoded = _packed_rows(file, parts, shape, bits, block_size)
    else:
        encoded = _typed(file, parts, axis=1, block_size=block_size)
    yield _weight(
        file,
        parts.base_name,
        f"GatherBlockQuantized {encoded.bits} bits, blocks of {block_size}",
        encoded,
    )


def _dequantize_linear(
    file: OnnxFile, node: NodeProto, attributes: Attributes
) -> Iterator[StoredWeight]:
    parts = _Parts.of(file, node, codes=0, scales=1, zeros=2)
    block_size = attributes.get("block_size", 0)
    encoded = _typed(file, parts, axis=attributes.get("axis", 1), block_size=block_size)
    blocks = f"blocks of {block_size}" if block_size else f"{encoded.scales.size} scales"
    yield _weight(
        file,
        parts.base_name,
        f"DequantizeLinear {_type_name(parts.codes)}, {blocks}",
        encoded,
    )


def _qmoe(file: OnnxFile, node: NodeProto, attributes: Attributes) -> Iterator[StoredWeight]:
    bits, block_size = attributes["expert_weight_bits"], attributes["block_size"]
    for first, zeros in ((2, 11), (5, 12)):
        parts = _Parts.of(file, node, codes=first, scales=first + 1, zeros=zeros)
        prefix, _, projection = parts.base_name.rpartition(".")
        names = _EXPERT_PARTS[projection]
        n_experts, n_rows, row_bytes = parts.codes.dims
        shape = (n_rows, row_bytes * _BITS_PER_BYTE // bits)
        # Rows of all experts are one matrix, of which each expert's are a slice.
        together = (n_experts * n_rows, shape[1])
        encoded = _packed_rows(file, parts, together, bits, block_size)
        for expert in range(n_experts):
            rows = encoded.rows(expert * n_rows, (expert + 1) * n_rows)
            for turn, name in enumerate(names):
                yield StoredWeight(
                    name=f"{prefix}.{expert}.{name}.weight",
                    stored_as=f"QMoE {bits} bits, blocks of {block_size}",
                    shape=(n_rows // len(names), shape[1]),
                    chunks=partial(_rows_in_turn, rows, turn, len(names)),
                )


def _rows_in_turn(encoded: Encoded, turn: int, step: int) -> Chunks:
    """Every `step`-th row; a chunk begins at a multiple of eight rows."""
    for chunk in dequantize(encoded):
        yield chunk[turn::step]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Form:
    """How one operator stores weights."""

    codes: int
    """Position of the codes among its inputs."""
    read: Callable[[OnnxFile, NodeProto, Attributes], Iterator[StoredWeight]]


_FORMS = {
    "MatMulNBits": _Form(codes=1, read=_matmul_nbits),
    "GatherBlockQuantized": _Form(codes=0, read=_gather_block_quantized),
    "DequantizeLinear": _Form(codes=0, read=_dequantize_linear),
    "QMoE": _Form(codes=2, read=_qmoe),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Parts:
    """The tensors of a quantized weight."""

    codes: TensorProto
    scales: TensorProto
    zeros: TensorProto | None

    @property
    def base_name(self) -> str:
        """What the parts are parts of; codes have another name in a second view of their bytes."""
        return self.scales.name.removesuffix(".scales")

    @classmethod
    def of(
        cls, file: OnnxFile, node: NodeProto, *, codes: int, scales: int, zeros: int
    ) -> "_Parts":
        """Those at these input positions of a node."""
        found = [_input(file, node, position) for position in (codes, scales)]
        if found[0] is None or found[1] is None:
            raise file.damaged(f"the codes and scales of {node.name} are not in the data file")
        return cls(codes=found[0], scales=found[1], zeros=_input(file, node, zeros))


def _packed_rows(
    file: OnnxFile, parts: _Parts, shape: tuple[int, int], bits: int, block_size: int
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


def _typed(file: OnnxFile, parts: _Parts, *, axis: int, block_size: int) -> Encoded:
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


def _scales(file: OnnxFile, parts: _Parts, shape: tuple[int, ...]) -> NDArray[np.floating[Any]]:
    """The scales, of which QMoE's have one dimension more."""
    scales = file.array(parts.scales)
    if scales.size != prod(shape):
        raise file.damaged(f"{parts.scales.name} has {scales.size} scales and {shape} are needed")
    return scales.reshape(shape)


def _zeros(file: OnnxFile, parts: _Parts, n_bytes: int) -> NDArray[np.uint8] | None:
    if parts.zeros is None:
        return None
    zeros = file.raw(parts.zeros)
    if zeros.size != n_bytes:
        raise file.damaged(f"{parts.zeros.name} has {zeros.size} bytes and {n_bytes} are needed")
    return zeros


def _weight(file: OnnxFile, name: str, stored_as: str, encoded: Encoded) -> StoredWeight:
    """A weight whose columns are put back in the checkpoint's order (act-order)."""
    stored_order = file.external.get(f"{name}.order")
    place_I = None if stored_order is None else np.argsort(file.array(stored_order))

    def chunks() -> Chunks:
        for chunk in dequantize(encoded):
            yield chunk if place_I is None else chunk[:, place_I]

    return StoredWeight(name=name, stored_as=stored_as, shape=encoded.shape, chunks=chunks)


def _input(file: OnnxFile, node: NodeProto, position: int) -> TensorProto | None:
    """The data file's tensor at an input of a node."""
    return file.external.get(node.input[position]) if position < len(node.input) else None


def _type_name(tensor: TensorProto) -> str:
    return str(TensorProto.DataType.Name(tensor.data_type))
