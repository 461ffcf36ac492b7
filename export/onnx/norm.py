"""RMS normalization, y = x / sqrt(mean(x^2) + eps) * g, and the residual stream that it reads.

The stream is float32 also in a float16 graph. Its few outlier channels reach tens of thousands
(17,000 in SmolLM2-135M), where float16 has steps of 8 and ends at 65,504, and what later layers
subtract again leaves the steps behind: with a float16 stream the logits of a text differ by 1.2e-2
of the largest, with this one by 3.6e-3.

Shape legend: B batch, S tokens of this run, H hidden.
"""

from dataclasses import replace

import onnx_ir as ir

from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder, typed
from tightfit.export.onnx.linear import float_value
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.weights import FloatWeight, Weights


def rms_norm(
    graph: GraphBuilder,
    name: str,
    x: ir.Value,
    weights: Weights,
    epsilon: float,
    options: OnnxOptions,
) -> ir.Value:
    """Normalize the last axis, in the graph's precision, by the norm at module path `name`."""
    gain = _gain(graph, name, weights, options)
    normed = graph.op("RMSNormalization", [x, gain], name=name, axis=-1, epsilon=epsilon)
    return typed(normed, options.precision.data_type, x.shape)


def stream_norm(
    graph: GraphBuilder,
    name: str,
    stream_BSH: ir.Value,
    branch_BSH: ir.Value | None,
    weights: Weights,
    epsilon: float,
    options: OnnxOptions,
) -> tuple[ir.Value, ir.Value]:
    """Add a layer's branch to the float32 stream and normalize the sum.

    Gives the normalized sum in the graph's precision, and the sum.
    """
    exact = replace(options, precision=Precision.FLOAT32)
    if branch_BSH is None:
        normed_BSH = rms_norm(graph, name, stream_BSH, weights, epsilon, exact)
        return _cast(graph, normed_BSH, options, options.precision), stream_BSH
    branch_BSH = _cast(graph, branch_BSH, options, Precision.FLOAT32)
    if options.dialect is Dialect.STANDARD:
        sum_BSH = graph.op("Add", [stream_BSH, branch_BSH], name=f"{name}.sum")
        normed_BSH = rms_norm(graph, name, sum_BSH, weights, epsilon, exact)
    else:
        normed_BSH, sum_BSH = graph.ops(
            "SkipSimplifiedLayerNormalization",
            [stream_BSH, branch_BSH, _gain(graph, name, weights, exact)],
            (name, "", "", f"{name}.sum"),
            name=name,
            domain=MICROSOFT,
            epsilon=epsilon,
        )[::3]
    for value in (normed_BSH, sum_BSH):
        typed(value, ir.DataType.FLOAT, stream_BSH.shape)
    return _cast(graph, normed_BSH, options, options.precision), sum_BSH


def _cast(
    graph: GraphBuilder, value: ir.Value, options: OnnxOptions, precision: Precision
) -> ir.Value:
    """Between the stream and a float16 graph."""
    if options.precision is Precision.FLOAT32:
        return value
    dtype = precision.data_type
    cast = graph.op("Cast", [value], name=f"{value.name}.{precision.value}", to=int(dtype))
    return typed(cast, dtype, value.shape)


def _gain(graph: GraphBuilder, name: str, weights: Weights, options: OnnxOptions) -> ir.Value:
    weight = weights[f"{name}.weight"]
    assert isinstance(weight, FloatWeight), f"{name}: a norm is never quantized"
    return float_value(graph, f"{name}.weight", weight, options)
