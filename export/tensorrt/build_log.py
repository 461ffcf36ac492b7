"""What the engine computes layer by layer, from TensorRT's verbose build log.

With detailed profiling verbosity the log ends with one line a layer, for each optimization profile:

    Name: N, LayerType: L, Inputs: [...], Constants: [ { Name: C, Dimensions: [256,128], ...,
    Datatype: Int4, ...}], Outputs: [...], ..., Metadata: [ONNX Layer: A][ONNX Layer: B]

The constants are the weights as the engine keeps them; the metadata names the ONNX nodes that the
layer was fused from. The text is TensorRT's own and of no specified form (1.7.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

_CONSTANTS = re.compile(r"Constants: \[(.*?)\], Outputs: ")
_CONSTANT = re.compile(r"Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A weight inside an engine."""

    n_elements: int
    """Of several matrices together when the layer computes them at once."""
    type: str
    """TensorRT's name: `Int4`, `FP8`, `Int8`, `Half`, `Float`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLayer:
    """One layer of an engine."""

    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it was made of."""
    constants: tuple[Constant, ...]


def read_layers(log_file: Path) -> Iterator[EngineLayer]:
    """The layers of every optimization profile, in the log's order."""
    with log_file.open(encoding="utf-8", errors="replace") as log:
        for line in log:
            if line.startswith("Name: "):
                yield _layer(line)


def _layer(line: str) -> EngineLayer:
    constants = _CONSTANTS.search(line)
    found = _CONSTANT.findall(constants[1]) if constants else []
    return EngineLayer(
        nodes=tuple(_NODE.findall(line)),
        constants=tuple(
            Constant(n_elements=prod(int(size) for size in sizes.split(",") if size), type=kind)
            for sizes, kind in found
        ),
    )
