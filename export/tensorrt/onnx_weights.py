"""The quantized matrices of an ONNX file in the standard dialect, as TensorRT is to keep them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from onnx import NodeProto, TensorProto

from tightfit.export.onnx.file import ELEMENT_BITS, OnnxFile
from tightfit.export.tensorrt.verbatim import Matrix

_LOG_TYPES: Mapping[int, str] = MappingProxyType(
    {
        TensorProto.INT4: "Int4",
        TensorProto.INT8: "Int8",
        TensorProto.FLOAT8E4M3FN: "FP8",
    }
)
"""Element types of weights that TensorRT has, and what its log calls them."""
_BYTE_BITS = 8
_PASSING = frozenset({"Cast", "Transpose"})
"""Operators between a DequantizeLinear and what uses its values."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedInitializer:
    """One matrix of codes."""

    matrix: Matrix
    log_type: str
    """TensorRT's name of its type."""
    nodes: tuple[str, ...]
    """Names of the DequantizeLinear nodes that read it (a tied embedding has two) and of what
    multiplies or gathers the result: merging matrices, TensorRT keeps the names of either."""

    @property
    def n_elements(self) -> int:
        """Weights, not bytes."""
        return self.matrix.shape[0] * self.matrix.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OnnxWeights:
    """What of an ONNX file matters to an engine."""

    quantized: Mapping[str, QuantizedInitializer]
    """By the name of the codes; two views of the same bytes are one."""
    data_bytes: int
    """Of all weights in the data file, shared ones counted once."""


def read_onnx_weights(path: Path) -> OnnxWeights:
    """Open and check an ONNX file; raises `ArtifactError` when it is damaged or incomplete."""
    file = OnnxFile(path)
    sizes = {file.place(tensor): file.raw(tensor).size for tensor in file.external.values()}
    followers = _followers(file.graph.node)
    readers: dict[tuple[str, int], list[str]] = {}
    codes: dict[tuple[str, int], TensorProto] = {}
    for node in file.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in file.external:
            continue
        tensor = file.external[node.input[0]]
        place = file.place(tensor)
        codes.setdefault(place, tensor)
        readers.setdefault(place, []).extend([node.name, *followers(node)])
    quantized = {
        tensor.name: QuantizedInitializer(
            matrix=Matrix(
                data=file.raw(tensor),
                shape=(tensor.dims[0], tensor.dims[1]),
                whole_bytes=ELEMENT_BITS[tensor.data_type] == _BYTE_BITS,
            ),
            log_type=_LOG_TYPES.get(tensor.data_type, TensorProto.DataType.Name(tensor.data_type)),
            nodes=tuple(readers[place]),
        )
        for place, tensor in codes.items()
    }
    return OnnxWeights(quantized=MappingProxyType(quantized), data_bytes=sum(sizes.values()))


def _followers(nodes: Sequence[NodeProto]) -> Callable[[NodeProto], list[str]]:
    """For a node, the names of the products and lookups that its output ends in."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def follow(node: NodeProto) -> list[str]:
        found = []
        for reader in readers.get(node.output[0], []):
            found += follow(reader) if reader.op_type in _PASSING else [reader.name]
        return found

    return follow
