"""Token embedding, and the head, which may be the embedding's own bytes.

    float              Gather, both dialects
    integer groups     ort: GatherBlockQuantized, rows dequantized as they are fetched
    INT4, INT8, FP8    standard: Gather from DequantizeLinear, which TensorRT fuses and never
                       materializes (onnxruntime's CPU does, in every run)

A tied head reads the embedding's bytes: MatMulNBits and GatherBlockQuantized take the same packed
rows, seen as (O, G, block bytes) and as (O, row bytes).

Shape legend: B batch, S tokens of this run, V vocabulary, H hidden.
"""

from dataclasses import replace

import onnx_ir as ir

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder, typed
from tightfit.export.onnx.grids import check_embedding, packs_bits
from tightfit.export.onnx.linear import (
    dequantize,
    dequantized_value,
    in_precision,
    linear,
    multiply,
    multiply_nbits,
)
from tightfit.export.onnx.options import OnnxOptions, Precision
from tightfit.export.onnx.step import BATCH, LENGTH
from tightfit.export.onnx.stored import dequantize_linear, float_tensor, matmul_nbits
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weights

_WEIGHT_ENDING = ".weight"


def embed(
    graph: GraphBuilder,
    input_ids: ir.Value,
    weights: Weights,
    dimensions: ModelDimensions,
    architecture: Architecture,
    options: OnnxOptions,
) -> ir.Value:
    """(B, S, H), float32 in every graph: the beginning of the residual stream.

    Raises `QuantizationError` for an embedding that the dialect cannot fetch rows of.
    """
    name = architecture.embedding
    path = name.removesuffix(_WEIGHT_ENDING)
    weight = weights[name]
    if isinstance(weight, FloatWeight):
        table = graph.stored(float_tensor(name, weight))
        rows, dtype = graph.op("Gather", [table, input_ids], name=path), table.dtype
    elif packs_bits(weight.grid, options.dialect):
        rows = _gather_packed(graph, name, input_ids, weight, options)
        dtype = options.precision.data_type
    else:
        check_embedding(weight.grid, options.dialect)
        stored = dequantize_linear(name, weight, options.precision)
        assert stored.order is None, "an embedding has no act-order"
        table = dequantize(graph, path, stored)
        rows, dtype = graph.op("Gather", [table, input_ids], name=path), table.dtype
    rows = typed(rows, dtype, (BATCH, LENGTH, dimensions.hidden_size))
    return in_precision(graph, rows, Precision.FLOAT32)


def head(
    graph: GraphBuilder,
    x_BSH: ir.Value,
    weights: Weights,
    architecture: Architecture,
    options: OnnxOptions,
) -> ir.Value:
    """Logits (B, S, V) in the graph's precision."""
    path = architecture.head.removesuffix(_WEIGHT_ENDING)
    if architecture.head in weights:
        return linear(graph, path, x_BSH, weights[architecture.head], None, options)
    name = architecture.embedding
    weight = weights[name]
    if isinstance(weight, QuantizedWeight) and packs_bits(weight.grid, options.dialect):
        stored = matmul_nbits(name, weight, options.precision)
        codes = replace(stored.codes, name=f"{architecture.head}.codes")
        view = graph.stored(codes, same_bytes_as=stored.codes.name)
        return multiply_nbits(graph, path, x_BSH, stored, codes=view)
    if isinstance(weight, QuantizedWeight):
        stored_table = dequantize_linear(name, weight, options.precision)
        table = dequantized_value(graph, path, stored_table, options.precision)
    else:
        table = graph.stored(float_tensor(name, weight))
        table = in_precision(graph, table, options.precision)
    return multiply(graph, path, x_BSH, table)


def _gather_packed(
    graph: GraphBuilder,
    name: str,
    input_ids: ir.Value,
    weight: QuantizedWeight,
    options: OnnxOptions,
) -> ir.Value:
    stored = matmul_nbits(name, weight, options.precision)
    assert stored.order is None, "an embedding has no act-order"
    n_rows, n_groups, block_bytes = stored.codes.shape
    codes = graph.stored(replace(stored.codes, shape=(n_rows, n_groups * block_bytes)))
    inputs = [codes, input_ids, graph.stored(stored.scales)]
    if stored.zeros is not None:
        inputs.append(graph.stored(stored.zeros))
    return graph.op(
        "GatherBlockQuantized",
        inputs,
        name=name.removesuffix(_WEIGHT_ENDING),
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        bits=stored.bits,
        block_size=stored.block_size,
    )
