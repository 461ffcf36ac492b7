"""What an ONNX file holds: operators, inputs, outputs and tensors, without any weight."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from tightfit.export.onnx.file import read_model


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorDescription:
    """An initializer."""

    name: str
    dtype: str
    """As ONNX names it, e.g. `INT4`."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxDescription:
    """A whole model file."""

    opsets: Mapping[str, int]
    """Version by domain; ONNX's own domain is `ai.onnx`."""
    operators: Mapping[str, int]
    """How many nodes of each operator, the most frequent first."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[TensorDescription, ...]


def describe_onnx(path: Path) -> OnnxDescription:
    """Describe a model file; raises `ArtifactError` when it is not one."""
    model = read_model(path)
    graph = model.graph
    return OnnxDescription(
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        tensors=tuple(
            TensorDescription(
                name=tensor.name,
                dtype=TensorProto.DataType.Name(tensor.data_type),
                shape=tuple(tensor.dims),
            )
            for tensor in graph.initializer
        ),
    )
