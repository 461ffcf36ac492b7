"""Multi-head latent attention of DeepSeek-V3, on the latents themselves (the "absorbed" form).

    c   = norm(W_DKV x)       latent, one per token, all heads share it      cached
    k_R = rope(W_KR x)        rotary key, one per token                      cached
    score_n = ((q_n W_UK,n) . c + q_R,n . k_R) * scale
    out_n   = (softmax(score_n) . c) W_UV,n

The rows of kv_b_proj are, head by head, W_UK,n and W_UV,n. The other form expands the latents of
all positions by them into keys and values of every head; both are the same sum in another order.
Absorbing moves the product to the queries: per head and cached position a decode step of R1 costs
2 * (576 + 512) operations instead of 2 * (512 * 256 + 320), 120 times less, and no copy of the
cache 71 times its size is made. The price: every step dequantizes kv_b_proj as a whole (2.8 % of
the weights that R1 uses per token), because MatMulNBits has no form with one matrix per head.

The attention is then one of many query heads on one key head (kv_lora_rank + qk_rope_head_dim
wide) and one value head (kv_lora_rank wide), which opset 23's Attention computes in both dialects.

Scale is head_dim**-0.5, under yarn times the square of mscale_all_dim's factor.

Source: DeepSeek-V2 technical report (arXiv:2405.04434), section 2.1 and appendix C; transformers,
DeepseekV3Attention.

Shape legend: B batch, S new tokens, T all tokens, N heads, C latent, R rotary, D nope, V value.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tightfit.calib.dimensions import MlaDimensions, ModelDimensions
from tightfit.calib.rope import yarn_mscale
from tightfit.export.onnx.attention import Attended
from tightfit.export.onnx.cache import KEY, VALUE, Cache, present_name
from tightfit.export.onnx.graph import GraphBuilder, StoredTensor
from tightfit.export.onnx.grids import wide_grid
from tightfit.export.onnx.linear import (
    dequantized_value,
    float_value,
    in_order,
    linear,
    rounded_to_float8,
)
from tightfit.export.onnx.norm import rms_norm
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.onnx.step import ExplicitStep, Step
from tightfit.export.onnx.stored import dequantize_linear
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weights
from tightfit.quant.grids.integer import IntegerGrid
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

LATENT_NORM_EPS = 1e-6
"""Epsilon of the norms inside MLA, whatever `rms_norm_eps` is, as in transformers."""


def latent_attention(
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
    """The attention at module path `name` (`model.layers.N.self_attn`).

    Its cache holds latents (B, 1, P, C) as key and rotated keys (B, 1, P, R) as value. Raises
    `QuantizationError` for a grid that the dialect cannot hold.
    """
    mla = dimensions.mla
    assert mla is not None
    assert isinstance(step, ExplicitStep), name
    parts = _Parts(graph, name, weights, mla, dimensions.n_heads, options)
    expansion = parts.expansion()
    nope_BNSD, rotary_BNSR = parts.queries(x_BSH)
    latent_B1SC, key_B1SR = parts.latents(x_BSH, expansion)
    rotary_BNSR = parts.rotated(rotary_BNSR, step, "query")
    key_B1SR = parts.rotated(key_B1SR, step, "key")
    latent_B1TC = graph.op("Concat", [past.key, latent_B1SC], name=present_name(layer, KEY), axis=2)
    key_B1TR = graph.op("Concat", [past.value, key_B1SR], name=present_name(layer, VALUE), axis=2)
    to_key_NDC, to_value_NCV = parts.by_head(expansion)
    latent_query_BNSC = graph.op("MatMul", [nope_BNSD, to_key_NDC], name=f"{name}.latent_query")
    query = graph.op("Concat", [latent_query_BNSC, rotary_BNSR], name=f"{name}.query", axis=-1)
    key = graph.op("Concat", [latent_B1TC, key_B1TR], name=f"{name}.key", axis=-1)
    mixed_BNSC = graph.op(
        "Attention",
        [query, key, latent_B1TC, step.mask_B1ST],
        name=f"{name}.attention",
        scale=softmax_scale(dimensions),
    )
    value_BNSV = graph.op("MatMul", [mixed_BNSC, to_value_NCV], name=f"{name}.values")
    value_BSNV = graph.op("Transpose", [value_BNSV], name=f"{name}.by_token", perm=[0, 2, 1, 3])
    width = dimensions.n_heads * mla.v_head_dim
    heads = graph.op("Reshape", [value_BSNV, _ints(graph, 0, 0, width)], name=f"{name}.heads")
    return Attended(
        output_BSH=parts.linear("o_proj", heads), present=Cache(key=latent_B1TC, value=key_B1TR)
    )


def softmax_scale(dimensions: ModelDimensions) -> float:
    """Factor on the attention scores."""
    scale = 1.0 / math.sqrt(dimensions.head_dim)
    scaling = dimensions.rope_scaling
    if scaling is None or scaling.mscale_all_dim is None:
        return scale
    return scale * yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The parts of one layer's attention."""

    graph: GraphBuilder
    name: str
    weights: Weights
    mla: MlaDimensions
    n_heads: int
    options: OnnxOptions

    def linear(self, part: str, x: ir.Value) -> ir.Value:
        """A linear of this attention."""
        path = f"{self.name}.{part}"
        bias = self.weights.get(f"{path}.bias")
        assert bias is None or isinstance(bias, FloatWeight), path
        return linear(self.graph, path, x, self.weights[f"{path}.weight"], bias, self.options)

    def norm(self, part: str, x: ir.Value) -> ir.Value:
        """RMS norm over the last axis."""
        path = f"{self.name}.{part}"
        return rms_norm(self.graph, path, x, self.weights, LATENT_NORM_EPS, self.options)

    def queries(self, x_BSH: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The parts of all heads without and with a position, (B, N, S, D) and (B, N, S, R)."""
        if self.mla.q_lora_rank is None:
            query = self.linear("q_proj", x_BSH)
        else:
            latent = self.norm("q_a_layernorm", self.linear("q_a_proj", x_BSH))
            query = self.linear("q_b_proj", latent)
        widths = (self.mla.qk_nope_head_dim, self.mla.qk_rope_head_dim)
        per_head = _ints(self.graph, 0, 0, self.n_heads, sum(widths))
        query = self.graph.op("Reshape", [query, per_head], name=f"{self.name}.queries")
        query = self.graph.op(
            "Transpose", [query], name=f"{self.name}.queries_by_head", perm=[0, 2, 1, 3]
        )
        return self._split(query, widths, -1, ("query_nope", "query_rope"))

    def latents(self, x_BSH: ir.Value, expansion: "_Expansion") -> tuple[ir.Value, ir.Value]:
        """What the new tokens add to the cache, (B, 1, S, C) and (B, 1, S, R) not yet rotated."""
        both = self.linear("kv_a_proj_with_mqa", x_BSH)
        widths = (self.mla.kv_lora_rank, self.mla.qk_rope_head_dim)
        latent, key = self._split(both, widths, -1, ("latent", "rope_key"))
        latent = self._as_read(self.norm("kv_a_layernorm", latent), expansion)
        one = _ints(self.graph, 1)
        return (
            self.graph.op("Unsqueeze", [latent, one], name=f"{self.name}.new_latent"),
            self.graph.op("Unsqueeze", [key, one], name=f"{self.name}.new_rope_key"),
        )

    def rotated(self, x_BNSR: ir.Value, step: ExplicitStep, what: str) -> ir.Value:
        """With positions; pairs side by side stay so, which changes no product of q and k."""
        return self.graph.op(
            "RotaryEmbedding",
            [x_BNSR, step.cos_BSR, step.sin_BSR],
            name=f"{self.name}.rotated_{what}",
            interleaved=int(self.mla.rope_interleave),
        )

    def expansion(self) -> "_Expansion":
        """kv_b_proj as one matrix."""
        path = f"{self.name}.kv_b_proj"
        weight = self.weights[f"{path}.weight"]
        if isinstance(weight, FloatWeight):
            value = float_value(self.graph, f"{path}.weight", weight, self.options)
            return _Expansion(w_OC=value)
        stored = dequantize_linear(f"{path}.weight", in_wide_codes(weight), self.options.precision)
        return _Expansion(
            w_OC=dequantized_value(self.graph, path, stored, self.options.precision),
            order=stored.order,
            input_scale=weight.input_scale,
        )

    def by_head(self, expansion: "_Expansion") -> tuple[ir.Value, ir.Value]:
        """From queries to latents (N, D, C), and from latents to values (N, C, V)."""
        path = f"{self.name}.kv_b_proj"
        widths = (self.mla.qk_nope_head_dim, self.mla.v_head_dim)
        shape = _ints(self.graph, self.n_heads, sum(widths), self.mla.kv_lora_rank)
        w = self.graph.op("Reshape", [expansion.w_OC, shape], name=f"{path}.by_head")
        to_key_NDC, to_value_NVC = self._split(w, widths, 1, ("kv_b_proj.key", "kv_b_proj.value"))
        to_value_NCV = self.graph.op(
            "Transpose", [to_value_NVC], name=f"{path}.value_transposed", perm=[0, 2, 1]
        )
        return to_key_NDC, to_value_NCV

    def _as_read(self, latent_BSC: ir.Value, expansion: "_Expansion") -> ir.Value:
        """Latents as kv_b_proj reads them. They are cached so: nothing else reads them."""
        path = f"{self.name}.kv_b_proj"
        latent_BSC = in_order(self.graph, path, latent_BSC, expansion.order)
        if expansion.input_scale is None:
            return latent_BSC
        precision = self.options.precision
        return rounded_to_float8(self.graph, path, latent_BSC, expansion.input_scale, precision)

    def _split(
        self, x: ir.Value, widths: tuple[int, int], axis: int, names: tuple[str, str]
    ) -> tuple[ir.Value, ir.Value]:
        first, second = self.graph.ops(
            "Split",
            [x, _ints(self.graph, *widths)],
            [f"{self.name}.{name}" for name in names],
            name=f"{self.name}.{names[0]}.split",
            axis=axis,
        )
        return first, second


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Expansion:
    """kv_b_proj, and what it does to the latents that it reads."""

    w_OC: ir.Value
    """In the graph's precision; with act-order its columns are in stored order."""
    order: StoredTensor | None = None
    """Act-order."""
    input_scale: float | None = None
    """Static FP8."""


def in_wide_codes(weight: QuantizedWeight) -> QuantizedWeight:
    """The same numbers in codes that DequantizeLinear has a type for: 2 bits become 4."""
    wide = replace(weight, grid=wide_grid(weight.grid))
    if wide.grid == weight.grid:
        return weight
    old, new = get_grid(weight.grid), get_grid(wide.grid)
    assert isinstance(old, IntegerGrid)
    assert isinstance(new, IntegerGrid)
    # The zero point moves from the middle of one range to that of the other.
    shift = (1 << (new.bits - 1)) - (1 << (old.bits - 1)) if old.symmetric else 0

    def load() -> QuantizedTensor:
        tensor = weight.load()
        return replace(tensor, grid=wide.grid, codes_OI=tensor.codes_OI + shift)

    return replace(wide, load=load)


def _ints(graph: GraphBuilder, *values: int) -> ir.Value:
    return graph.constant("ints." + ".".join(map(str, values)), np.array(values, dtype=np.int64))
