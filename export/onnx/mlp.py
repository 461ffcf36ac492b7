"""The gated MLP of a dense layer: down( silu(gate x) * up x )."""

import onnx_ir as ir

from tightfit.export.onnx.graph import GraphBuilder, typed
from tightfit.export.onnx.linear import linear
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.weights import Weights


def gated_mlp(
    graph: GraphBuilder, name: str, x: ir.Value, weights: Weights, options: OnnxOptions
) -> ir.Value:
    """The MLP at module path `name` (`model.layers.N.mlp`), of the shape of its input."""

    def project(part: str, value: ir.Value) -> ir.Value:
        path = f"{name}.{part}"
        return linear(graph, path, value, weights[f"{path}.weight"], None, options)

    gate, up = project("gate_proj", x), project("up_proj", x)
    sigmoid = graph.op("Sigmoid", [gate], name=f"{name}.sigmoid")
    silu = graph.op("Mul", [gate, sigmoid], name=f"{name}.silu")
    gated = graph.op("Mul", [silu, up], name=f"{name}.gated")
    return project("down_proj", typed(gated, options.precision.data_type, up.shape))
