"""Read ONNX files back, through the `onnx` package and onnxruntime.

How each weight is stored is read from the graph: from the node that consumes its codes and that
node's attributes, not from what we meant to write. Weights are given one at a time and dequantized
when asked for, some rows at a time.

Shape legend: O output rows, I input columns, G column groups, E experts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tightfit.export.onnx.dequantize import Encoded, dequantize
from tightfit.export.onnx.file import OnnxFile
from tightfit.export.onnx.parts import Parts, packed_rows, stored_input, typed_rows

_WEIGHT_ENDINGS = (".weight", "bias")
"""Of checkpoint names; tables that a graph needs besides (rope) have others."""
_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
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
        codes = None if form is None else stored_input(file, node, form.codes)
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
    parts = Parts.of(file, node, codes=1, scales=2, zeros=3)
    shape = (attributes["N"], attributes["K"])
    yield _weight(
        file,
        parts.base_name,
        f"MatMulNBits {bits} bits, blocks of {block_size}",
        packed_rows(file, parts, shape, bits, block_size),
    )


def _gather_block_quantized(
    file: OnnxFile, node: NodeProto, attributes: Attributes
) -> Iterator[StoredWeight]:
    parts = Parts.of(file, node, codes=0, scales=2, zeros=3)
    block_size = attributes["block_size"]
    if parts.codes.data_type == TensorProto.UINT8:
        bits = attributes["bits"]
        n_rows, row_bytes = parts.codes.dims
        shape = (n_rows, row_bytes * _BITS_PER_BYTE // bits)
        encoded = packed_rows(file, parts, shape, bits, block_size)
    else:
        encoded = typed_rows(file, parts, axis=1, block_size=block_size)
    yield _weight(
        file,
        parts.base_name,
        f"GatherBlockQuantized {encoded.bits} bits, blocks of {block_size}",
        encoded,
    )


def _dequantize_linear(
    file: OnnxFile, node: NodeProto, attributes: Attributes
) -> Iterator[StoredWeight]:
    parts = Parts.of(file, node, codes=0, scales=1, zeros=2)
    block_size = attributes.get("block_size", 0)
    encoded = typed_rows(file, parts, axis=attributes.get("axis", 1), block_size=block_size)
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
        parts = Parts.of(file, node, codes=first, scales=first + 1, zeros=zeros)
        prefix, _, projection = parts.base_name.rpartition(".")
        names = _EXPERT_PARTS[projection]
        n_experts, n_rows, row_bytes = parts.codes.dims
        shape = (n_rows, row_bytes * _BITS_PER_BYTE // bits)
        # Rows of all experts are one matrix, of which each expert's are a slice.
        together = (n_experts * n_rows, shape[1])
        encoded = packed_rows(file, parts, together, bits, block_size)
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


def _weight(file: OnnxFile, name: str, stored_as: str, encoded: Encoded) -> StoredWeight:
    """A weight whose columns are put back in the checkpoint's order (act-order)."""
    place_I = _places(file, name, encoded.shape[1])

    def chunks() -> Chunks:
        for chunk in dequantize(encoded):
            yield chunk if place_I is None else chunk[:, place_I]

    return StoredWeight(name=name, stored_as=stored_as, shape=encoded.shape, chunks=chunks)


def _places(file: OnnxFile, name: str, n_columns: int) -> NDArray[np.int64] | None:
    """Where each column of the checkpoint lies among the stored ones; None: in its own place."""
    stored_order = file.external.get(f"{name}.order")
    if stored_order is None:
        return None
    order_I = file.array(stored_order)
    place_I = np.argsort(order_I)
    if order_I.size != n_columns or (order_I[place_I] != np.arange(n_columns)).any():
        raise file.damaged(f"{stored_order.name} is no order of {n_columns} columns")
    return place_I


def _type_name(tensor: TensorProto) -> str:
    return str(TensorProto.DataType.Name(tensor.data_type))
