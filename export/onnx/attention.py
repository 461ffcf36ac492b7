"""Grouped-query attention of Qwen2, Qwen3 and Llama.

    ort       GroupQueryAttention, which rotates, appends to the cache and masks by itself
    standard  RotaryEmbedding, Concat with the cache, Attention with an explicit mask

Qwen3 normalizes each head of q and k before the rotation.

Shape legend: B batch, S tokens of this run, P cached tokens, T = P + S, N heads, D width of a head,
H hidden.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.cache import KEY, VALUE, Cache, present_name
from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder, typed
from tightfit.export.onnx.linear import linear
from tightfit.export.onnx.norm import rms_norm
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.onnx.step import BATCH, LENGTH, ExplicitStep, FusedStep, Step
from tightfit.export.weights import FloatWeight, Weights

_KEEP = 0
"""Reshape: this dimension stays as it is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Attended:
    """What an attention gives."""

    output_BSH: ir.Value
    present: Cache


def grouped_query_attention(
    graph: GraphBuilder,
    layer: int,
    name: str,
    x_BSH: ir.Value,
    past: Cache,
    step: Step,
    weights: Weights,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> Attended:
    """The attention at module path `name` (`model.layers.N.self_attn`)."""

    def project(part: str, value: ir.Value) -> ir.Value:
        path = f"{name}.{part}"
        bias = weights.get(f"{path}.bias")
        assert bias is None or isinstance(bias, FloatWeight), path
        return linear(graph, path, value, weights[f"{path}.weight"], bias, options)

    def head_norm(part: str, value: ir.Value) -> ir.Value:
        path = f"{name}.{part}"
        if f"{path}.weight" not in weights:
            return value
        return rms_norm(graph, path, value, weights, dimensions.rms_norm_eps, options)

    q, k, v = (project(part, x_BSH) for part in ("q_proj", "k_proj", "v_proj"))
    if isinstance(step, FusedStep):
        q, k = (
            _whole(graph, head_norm(part, _heads(graph, value, dimensions)))
            if f"{name}.{part}.weight" in weights
            else value
            for part, value in (("q_norm", q), ("k_norm", k))
        )
        mixed, present = _fused(graph, layer, name, (q, k, v), past, step, dimensions, options)
    else:
        q, k, v = (_heads(graph, value, dimensions) for value in (q, k, v))
        heads = (head_norm("q_norm", q), head_norm("k_norm", k), v)
        mixed, present = _explicit(graph, layer, name, heads, past, step, dimensions)
    return Attended(output_BSH=project("o_proj", mixed), present=present)


def _fused(
    graph: GraphBuilder,
    layer: int,
    name: str,
    qkv_BSW: tuple[ir.Value, ir.Value, ir.Value],
    past: Cache,
    step: FusedStep,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> tuple[ir.Value, Cache]:
    mixed, key, value = graph.ops(
        "GroupQueryAttention",
        [
            *qkv_BSW,
            past.key,
            past.value,
            step.last_index_B,
            step.total_length,
            step.cos_MR,
            step.sin_MR,
        ],
        (f"{name}.mixed", present_name(layer, KEY), present_name(layer, VALUE)),
        name=f"{name}.mixed",
        domain=MICROSOFT,
        num_heads=dimensions.n_heads,
        kv_num_heads=dimensions.n_kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
        scale=_scale(dimensions),
    )
    typed(mixed, options.precision.data_type, (BATCH, LENGTH, dimensions.q_width))
    return mixed, Cache(key=key, value=value)


def _explicit(
    graph: GraphBuilder,
    layer: int,
    name: str,
    qkv_BSND: tuple[ir.Value, ir.Value, ir.Value],
    past: Cache,
    step: ExplicitStep,
    dimensions: ModelDimensions,
) -> tuple[ir.Value, Cache]:
    q, k, v = (
        graph.op("Transpose", [value], name=f"{value.name}.by_head", perm=[0, 2, 1, 3])
        for value in qkv_BSND
    )
    q, k = (
        graph.op(
            "RotaryEmbedding", [value, step.cos_BSR, step.sin_BSR], name=f"{value.name}.rotated"
        )
        for value in (q, k)
    )
    key = graph.op("Concat", [past.key, k], name=present_name(layer, KEY), axis=2)
    value = graph.op("Concat", [past.value, v], name=present_name(layer, VALUE), axis=2)
    mixed_BNSD = graph.op(
        "Attention",
        [q, key, value, step.mask_B1ST],
        name=f"{name}.by_head",
        scale=_scale(dimensions),
    )
    mixed_BSND = graph.op("Transpose", [mixed_BNSD], name=f"{name}.by_token", perm=[0, 2, 1, 3])
    return _whole(graph, mixed_BSND), Cache(key=key, value=value)


def _heads(graph: GraphBuilder, value_BSW: ir.Value, dimensions: ModelDimensions) -> ir.Value:
    """(B, S, heads, D)."""
    shape = np.array([_KEEP, _KEEP, -1, dimensions.head_dim], dtype=np.int64)
    split = graph.constant("attention.heads_shape", shape)
    return graph.op("Reshape", [value_BSW, split], name=f"{value_BSW.name}.heads")


def _whole(graph: GraphBuilder, value_BSND: ir.Value) -> ir.Value:
    """(B, S, heads * D)."""
    whole = graph.constant("attention.whole_shape", np.array([_KEEP, _KEEP, -1], dtype=np.int64))
    return graph.op("Reshape", [value_BSND, whole], name=f"{value_BSND.name}.whole")


def _scale(dimensions: ModelDimensions) -> float:
    return 1.0 / math.sqrt(dimensions.head_dim)
