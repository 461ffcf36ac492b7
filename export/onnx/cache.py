"""The KV cache: a graph's inputs `past_key_values.N.*` and outputs `present.N.*`.

Grouped-query attention caches rotated keys and values, (B, kv heads, T, head_dim) each; multi-head
latent attention its two latents, (B, 1, T, kv_lora_rank) as key and (B, 1, T, rope dims) as value.
"""

from dataclasses import dataclass

import onnx_ir as ir

from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.graph import Dim, GraphBuilder
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.onnx.step import BATCH, PAST, TOTAL

KEY, VALUE = "key", "value"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cache:
    """What one layer reads (past) or gives (present)."""

    key: ir.Value
    value: ir.Value


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """The same in all layers."""

    n_heads: int
    key_width: int
    value_width: int

    def dims(self, kind: str, length: str) -> tuple[Dim, ...]:
        """Of `KEY` or `VALUE`, for `PAST` or `TOTAL` tokens."""
        return (BATCH, self.n_heads, length, self.key_width if kind == KEY else self.value_width)


def cache_shape(dimensions: ModelDimensions) -> CacheShape:
    """What a model caches per token and layer."""
    mla = dimensions.mla
    if mla is not None:
        return CacheShape(n_heads=1, key_width=mla.kv_lora_rank, value_width=mla.qk_rope_head_dim)
    width = dimensions.head_dim
    return CacheShape(n_heads=dimensions.n_kv_heads, key_width=width, value_width=width)


def past_cache(
    graph: GraphBuilder, layer: int, dimensions: ModelDimensions, options: OnnxOptions
) -> Cache:
    """The two inputs of a layer."""
    shape = cache_shape(dimensions)
    key, value = (
        graph.input(
            f"past_key_values.{layer}.{kind}", options.precision.data_type, shape.dims(kind, PAST)
        )
        for kind in (KEY, VALUE)
    )
    return Cache(key=key, value=value)


def cache_outputs(
    presents: list[Cache], dimensions: ModelDimensions, options: OnnxOptions
) -> list[tuple[ir.Value, ir.DataType, tuple[Dim, ...]]]:
    """Output values of all layers, with types and shapes."""
    shape = cache_shape(dimensions)
    return [
        (value, options.precision.data_type, shape.dims(kind, TOTAL))
        for present in presents
        for kind, value in ((KEY, present.key), (VALUE, present.value))
    ]


def present_name(layer: int, kind: str) -> str:
    """Name of an output."""
    return f"present.{layer}.{kind}"
