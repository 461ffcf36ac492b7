"""A thin layer over onnx-ir: nodes in order, small constants inline, weights in one data file.

Weights are not held: the graph keeps where each one lies in the data file and how to get its bytes
when the file is written. Offsets are given as weights are added, so the size of the file is known
before anything is loaded.

Source: ONNX IR specification, "External Tensor Data".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

OPSET = 23
"""First opset with RMSNormalization, RotaryEmbedding and Attention."""
IR_VERSION = 11
"""The version that opset 23 came with."""
MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""
PAGE_BYTES = 4096
"""Alignment of large tensors, so that runtimes can map them (ONNX specification)."""
_LARGE_BYTES = 1 << 20
_SMALL_ALIGNMENT_BYTES = 64
"""A cache line: enough for any vector load."""
_BITS_PER_BYTE = 8

Dim = int | str
Attribute = int | float | str | Sequence[int] | Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of the data file."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    """In elements; 4-bit and 2-bit elements are packed, the first in the low bits."""
    chunks: Callable[[], Iterator[bytes | memoryview]]
    """Its raw little-endian bytes in order, computed when asked for."""

    @property
    def n_bytes(self) -> int:
        """Bytes in the data file."""
        return -(-prod(self.shape) * self.dtype.bitwidth // _BITS_PER_BYTE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OnnxGraph:
    """A finished graph, and what its data file holds."""

    model: ir.Model
    data: tuple[tuple[int, StoredTensor], ...]
    """Offset and tensor, in ascending order."""
    data_bytes: int
    """Size of the data file."""


class GraphBuilder:
    """Collects the nodes of one graph."""

    def __init__(self, name: str, *, data_file: str) -> None:
        """`data_file` is the name of the data file beside the model."""
        self._name = name
        self._data_file = data_file
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._data: list[tuple[int, StoredTensor]] = []
        self._offsets: dict[str, int] = {}
        self._end = 0

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """An input of the graph; text dimensions are dynamic."""
        value = _value(name, dtype, shape)
        self._inputs.append(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        domain: str = "",
        **attributes: Attribute,
    ) -> ir.Value:
        """A node with one output, which has the node's name."""
        return self.ops(op_type, inputs, (name,), name=name, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        *,
        name: str,
        domain: str = "",
        **attributes: Attribute,
    ) -> tuple[ir.Value, ...]:
        """A node with named outputs; an empty name leaves an output out."""
        values = tuple(ir.Value(name=output) for output in outputs)
        self._nodes.append(
            ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name)
        )
        return values

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """A small tensor inside the model file; the same name is the same tensor."""
        if name not in self._initializers:
            tensor = ir.Tensor(value, name=name)
            self._initializers[name] = ir.Value(
                name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
            )
        return self._initializers[name]

    def stored(self, tensor: StoredTensor, *, same_bytes_as: str | None = None) -> ir.Value:
        """A tensor of the data file, or another view of one that is there already."""
        if tensor.name in self._initializers:
            return self._initializers[tensor.name]
        if same_bytes_as is not None:
            offset = self._offsets[same_bytes_as]
        else:
            alignment = PAGE_BYTES if tensor.n_bytes >= _LARGE_BYTES else _SMALL_ALIGNMENT_BYTES
            offset = -(-self._end // alignment) * alignment
            self._end = offset + tensor.n_bytes
            self._data.append((offset, tensor))
        self._offsets[tensor.name] = offset
        value = _value(tensor.name, tensor.dtype, tensor.shape)
        value.const_value = ir.ExternalTensor(
            self._data_file,
            offset,
            tensor.n_bytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
        )
        self._initializers[tensor.name] = value
        return value

    def finish(
        self, outputs: Sequence[tuple[ir.Value, ir.DataType, Sequence[Dim]]], *, producer: str
    ) -> OnnxGraph:
        """The graph with these outputs, each with its type and shape."""
        for value, dtype, shape in outputs:
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        domains = {node.domain for node in self._nodes}
        graph = ir.Graph(
            self._inputs,
            [value for value, _, _ in outputs],
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET} | ({MICROSOFT: 1} if MICROSOFT in domains else {}),
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name=producer)
        return OnnxGraph(model=model, data=tuple(self._data), data_bytes=self._end)


def typed(
    value: ir.Value,
    dtype: ir.DataType | None,
    shape: Sequence[int | str | ir.SymbolicDim] | ir.Shape | None,
) -> ir.Value:
    """Say what a node gives where ONNX cannot infer it: operators outside the standard."""
    assert dtype is not None, value.name
    value.type = ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(shape)
    return value


def _value(name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
