"""What every layer of one run reads besides its own activations: positions, mask and lengths.

Two forms, because onnxruntime's GroupQueryAttention rotates and masks by itself.

Shape legend: B batch, S tokens of this run, P tokens in the cache, T = P + S, M longest context,
R rotated dimensions of a head.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.graph import GraphBuilder
from tightfit.export.onnx.options import Dialect, OnnxOptions
from tightfit.export.onnx.rope import rotary_cos_sin

BATCH, LENGTH, PAST, TOTAL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "total_sequence_length",
)
"""Names of the dynamic dimensions B, S, P and T."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FusedStep:
    """For GroupQueryAttention, which wants each sequence's tokens before its padding."""

    last_index_B: ir.Value
    """int32: real tokens of a sequence, cached ones included, minus 1."""
    total_length: ir.Value
    """int32 scalar: T."""
    cos_MR: ir.Value
    """(M, R/2), in the graph's precision; runtimes compute it once, when they load the model."""
    sin_MR: ir.Value


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExplicitStep:
    """For attention out of standard operators; a cache may have padding anywhere."""

    cos_BSR: ir.Value
    """(B, S, R/2), in the graph's precision."""
    sin_BSR: ir.Value
    mask_B1ST: ir.Value
    """bool: what a token may attend to; never nothing, so padding makes no NaN."""


Step = FusedStep | ExplicitStep


def build_step(
    graph: GraphBuilder,
    input_ids: ir.Value,
    attention_mask: ir.Value,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> Step:
    """The nodes that all layers share; `position_ids` is an input of the standard dialect only."""
    if options.dialect is Dialect.ORT and dimensions.mla is None:
        return _fused(graph, attention_mask, dimensions, options)
    total = _length(graph, attention_mask, "total_length")
    past = graph.op("Sub", [total, _length(graph, input_ids, "length")], name="past_length")
    zero, one = _scalar(graph, 0), _scalar(graph, 1)
    slot_S = graph.op("Range", [past, total, one], name="query_slots")
    slot_T = graph.op("Range", [zero, total, one], name="key_slots")
    if options.dialect is Dialect.STANDARD:
        position_BS = graph.input("position_ids", ir.DataType.INT64, (BATCH, LENGTH))
    else:
        counted_BT = graph.op("CumSum", [attention_mask, one], name="counted_tokens")
        counted_BS = graph.op("Gather", [counted_BT, slot_S], name="counted_queries", axis=1)
        position_BS = graph.op("Sub", [counted_BS, one], name="positions")
    position_BS = _cast(graph, position_BS, ir.DataType.FLOAT, "float_positions")
    cos_BSR, sin_BSR = rotary_cos_sin(
        graph, position_BS, dimensions, options.precision, name="rope"
    )
    return ExplicitStep(
        cos_BSR=cos_BSR, sin_BSR=sin_BSR, mask_B1ST=_mask(graph, attention_mask, slot_S, slot_T)
    )


def _fused(
    graph: GraphBuilder,
    attention_mask: ir.Value,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> FusedStep:
    n_real_B = graph.op(
        "ReduceSum", [attention_mask, _axes(graph, 1)], name="real_tokens", keepdims=0
    )
    last_index_B = graph.op("Sub", [n_real_B, _scalar(graph, 1)], name="last_index.int64")
    total = _length(graph, attention_mask, "total_length.int64")
    # Constants only: runtimes fold the tables when they load the model.
    bounds = [
        graph.constant(f"rope.{name}", np.array(value, dtype=np.float32))
        for name, value in (("first", 0), ("end", dimensions.max_position_embeddings), ("step", 1))
    ]
    position_M = graph.op("Range", bounds, name="rope.all_positions")
    cos_MR, sin_MR = rotary_cos_sin(graph, position_M, dimensions, options.precision, name="rope")
    return FusedStep(
        last_index_B=_cast(graph, last_index_B, ir.DataType.INT32, "last_index"),
        total_length=_cast(graph, total, ir.DataType.INT32, "total_length"),
        cos_MR=cos_MR,
        sin_MR=sin_MR,
    )


def _mask(
    graph: GraphBuilder, attention_mask: ir.Value, slot_S: ir.Value, slot_T: ir.Value
) -> ir.Value:
    """Real tokens up to oneself; padding attends to itself at least."""
    slot_S1 = graph.op("Unsqueeze", [slot_S, _axes(graph, 1)], name="mask.query_slots")
    causal_ST = graph.op("LessOrEqual", [slot_T, slot_S1], name="mask.causal")
    self_ST = graph.op("Equal", [slot_T, slot_S1], name="mask.self")
    real_BT = _cast(graph, attention_mask, ir.DataType.BOOL, "mask.real")
    real_B11T = graph.op("Unsqueeze", [real_BT, _axes(graph, 1, 2)], name="mask.real_keys")
    seen_B1ST = graph.op("And", [real_B11T, causal_ST], name="mask.seen")
    return graph.op("Or", [seen_B1ST, self_ST], name="mask")


def _length(graph: GraphBuilder, value: ir.Value, name: str) -> ir.Value:
    """int64 scalar: size of the second dimension."""
    shape = graph.op("Shape", [value], name=f"{name}.shape")
    return graph.op("Gather", [shape, _scalar(graph, 1)], name=name, axis=0)


def _cast(graph: GraphBuilder, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    return graph.op("Cast", [value], name=name, to=int(dtype))


def _scalar(graph: GraphBuilder, value: int) -> ir.Value:
    return graph.constant(f"int.{value}", np.array(value, dtype=np.int64))


def _axes(graph: GraphBuilder, *values: int) -> ir.Value:
    return graph.constant("ints." + ".".join(map(str, values)), np.array(values, dtype=np.int64))
