"""One linear layer, y = x W^T + b, in the storage form of its weight.

    integer groups, ort dialect         [Gather by order] MatMulNBits
    integer groups, standard dialect    [Gather by order] MatMul with Transpose(DequantizeLinear)
    integer rows, FP8                   MatMul with Transpose(DequantizeLinear), both dialects
    FP8 with a static input scale       the same, with QuantizeLinear, DequantizeLinear on x
    float                               MatMul with Transpose(weight)

Weights are stored (O, I) in every form. TensorRT keeps the codes of a DequantizeLinear that is
followed by a Transpose.

Shape legend: BS tokens (one dimension or several), O output rows, I input columns.
"""

import numpy as np
import onnx_ir as ir

from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder, StoredTensor, typed
from tightfit.export.onnx.grids import packs_bits
from tightfit.export.onnx.options import OnnxOptions, Precision
from tightfit.export.onnx.stored import (
    Dequantized,
    NBits,
    dequantize_linear,
    float_tensor,
    matmul_nbits,
)
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight

EXACT_ACCURACY_LEVEL = 1
"""MatMulNBits: activations stay float32 on the CPU. Level 4 would round them to int8, which costs
5e-3 of the logits; level 1 costs none."""


def linear(
    graph: GraphBuilder,
    name: str,
    x_BSI: ir.Value,
    weight: Weight,
    bias: FloatWeight | None,
    options: OnnxOptions,
) -> ir.Value:
    """(BS, O) of the linear at module path `name`, whose tensors are `NAME.weight`, `NAME.bias`.

    Raises `QuantizationError` for a grid that the dialect cannot hold.
    """
    stored = f"{name}.weight"
    if isinstance(weight, FloatWeight):
        y_BSO = multiply(graph, name, x_BSI, float_value(graph, stored, weight, options))
    elif packs_bits(weight.grid, options.dialect):
        y_BSO = multiply_nbits(graph, name, x_BSI, matmul_nbits(stored, weight, options.precision))
    else:
        y_BSO = _multiply_dequantized(graph, name, x_BSI, weight, options)
    if bias is None:
        return y_BSO
    bias_O = float_value(graph, f"{name}.bias", bias, options)
    return graph.op("Add", [y_BSO, bias_O], name=f"{name}.biased")


def float_value(
    graph: GraphBuilder, name: str, weight: FloatWeight, options: OnnxOptions
) -> ir.Value:
    """A stored float tensor in the graph's precision."""
    value = graph.stored(float_tensor(name, weight))
    return in_precision(graph, value, options.precision)


def in_precision(graph: GraphBuilder, value: ir.Value, precision: Precision) -> ir.Value:
    """A stored value or a DequantizeLinear's result as the graph computes."""
    if value.dtype == precision.data_type:
        return value
    cast = graph.op("Cast", [value], name=f"{value.name}.cast", to=int(precision.data_type))
    return typed(cast, precision.data_type, value.shape)


def multiply_nbits(
    graph: GraphBuilder,
    name: str,
    x_BSI: ir.Value,
    weight: NBits,
    *,
    codes: ir.Value | None = None,
) -> ir.Value:
    """(BS, O) by MatMulNBits; `codes` is another view of the weight's own."""
    x_BSI = in_order(graph, name, x_BSI, weight.order)
    n_rows, n_groups, _ = weight.codes.shape
    zeros = None if weight.zeros is None else graph.stored(weight.zeros)
    codes = graph.stored(weight.codes) if codes is None else codes
    inputs = [x_BSI, codes, graph.stored(weight.scales), zeros]
    y_BSO = graph.op(
        "MatMulNBits",
        inputs if zeros is not None else inputs[:-1],
        name=name,
        domain=MICROSOFT,
        N=n_rows,
        K=n_groups * weight.block_size,
        bits=weight.bits,
        block_size=weight.block_size,
        accuracy_level=EXACT_ACCURACY_LEVEL,
    )
    shape = None if x_BSI.shape is None else (*x_BSI.shape[:-1], n_rows)
    return typed(y_BSO, weight.scales.dtype, shape)


def dequantized_value(
    graph: GraphBuilder, name: str, weight: Dequantized, precision: Precision
) -> ir.Value:
    """(O, I) in the graph's precision, by DequantizeLinear."""
    return in_precision(graph, dequantize(graph, name, weight), precision)


def dequantize(graph: GraphBuilder, name: str, weight: Dequantized) -> ir.Value:
    """(O, I) in the type of the scales, by DequantizeLinear."""
    inputs = [graph.stored(weight.codes), graph.stored(weight.scales)]
    if weight.zeros is not None:
        inputs.append(graph.stored(weight.zeros))
    w_OI = graph.op(
        "DequantizeLinear",
        inputs,
        name=f"{name}.dequantized",
        axis=weight.axis,
        block_size=weight.block_size,
    )
    return typed(w_OI, weight.scales.dtype, weight.codes.shape)


def _multiply_dequantized(
    graph: GraphBuilder, name: str, x_BSI: ir.Value, weight: QuantizedWeight, options: OnnxOptions
) -> ir.Value:
    stored = dequantize_linear(f"{name}.weight", weight, options.precision)
    x_BSI = in_order(graph, name, x_BSI, stored.order)
    if weight.input_scale is not None:
        x_BSI = rounded_to_float8(graph, name, x_BSI, weight.input_scale, options.precision)
    w_OI = dequantized_value(graph, name, stored, options.precision)
    return multiply(graph, name, x_BSI, w_OI)


def multiply(graph: GraphBuilder, name: str, x_BSI: ir.Value, w_OI: ir.Value) -> ir.Value:
    """(BS, O) by MatMul."""
    w_IO = graph.op("Transpose", [w_OI], name=f"{name}.transposed", perm=[1, 0])
    return graph.op("MatMul", [x_BSI, w_IO], name=name)


def in_order(
    graph: GraphBuilder, name: str, x_BSI: ir.Value, order: StoredTensor | None
) -> ir.Value:
    """Columns of x in the order of the stored ones (act-order)."""
    if order is None:
        return x_BSI
    return graph.op("Gather", [x_BSI, graph.stored(order)], name=f"{name}.in_order", axis=-1)


def rounded_to_float8(
    graph: GraphBuilder, name: str, x_BSI: ir.Value, input_scale: float, precision: Precision
) -> ir.Value:
    """The input as E4M3 numbers times a static scale; the scale is float32, as the weight's is."""
    if precision is not Precision.FLOAT32:
        x_BSI = graph.op("Cast", [x_BSI], name=f"{name}.float_input", to=int(ir.DataType.FLOAT))
    scale = graph.constant(f"{name}.weight.input_scale", np.array(input_scale, dtype=np.float32))
    codes_BSI = graph.op(
        "QuantizeLinear",
        [x_BSI, scale],
        name=f"{name}.quantized_input",
        output_dtype=int(ir.DataType.FLOAT8E4M3FN),
    )
    x_BSI = graph.op("DequantizeLinear", [codes_BSI, scale], name=f"{name}.rounded_input")
    x_BSI.dtype = ir.DataType.FLOAT
    return in_precision(graph, x_BSI, precision)
