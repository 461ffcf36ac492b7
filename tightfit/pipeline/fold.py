"""Fold AWQ scales through a block: multiply the readers of an input, divide what produces it.

The block computes the same function afterwards, with weights that lose less when they are rounded.
"""

from collections.abc import Mapping

from torch import Tensor

from tightfit.calib.family import BlockKind, FoldKind, Input
from tightfit.pipeline.collect import BlockStatistics
from tightfit.quant.algorithms.awq import (
    fold_into_linear,
    fold_into_norm,
    mean_over_query_groups,
    scale_columns,
    search_scale,
    value_rows_scale,
)
from tightfit.quant.algorithms.hessian import InputStatistics
from tightfit.quant.grid import Grid

Scales = Mapping[str, Tensor]
"""float32 (I,) by input: what its readers were multiplied by."""


def fold_scales(
    kind: BlockKind,
    parameters: Mapping[str, Tensor],
    statistics: BlockStatistics,
    grids: Mapping[str, Grid],
    *,
    n_heads: int,
    n_kv_heads: int,
) -> tuple[dict[str, Tensor], BlockStatistics, Scales]:
    """The block with the best scales folded in, the statistics that then hold, the scales."""
    values = dict(parameters)
    scaled = dict(statistics)
    scales: dict[str, Tensor] = {}
    for source in kind.inputs:
        names = [f"{linear}.weight" for linear in source.linears]
        if source.fold_kind is None or not grids.keys() >= set(names):
            continue
        seen = statistics[source.name]
        assert isinstance(seen, InputStatistics), "an input of single heads is not folded"
        abs_mean_I = seen.abs_mean_I
        if source.fold_kind is FoldKind.GROUPED_VALUE:
            abs_mean_I = mean_over_query_groups(abs_mean_I, n_heads, n_kv_heads)
        found = search_scale(
            {name: values[name] for name in names},
            seen.hessian_II,
            abs_mean_I,
            {name: grids[name] for name in names},
        )
        _multiply_readers(source, values, found.scale_I)
        scaled[source.name] = seen.scaled(found.scale_I)
        scales[source.name] = found.scale_I
        _divide_producer(source, values, found.scale_I, n_heads, n_kv_heads)
    return values, scaled, scales


def _multiply_readers(source: Input, values: dict[str, Tensor], scale_I: Tensor) -> None:
    for linear in (*source.linears, *source.scaled_columns):
        name = f"{linear}.weight"
        values[name] = scale_columns(values[name], scale_I)
    for linear in source.scaled_rows:
        name = f"{linear}.weight"
        values[name] = values[name] * scale_I[:, None]


def _divide_producer(
    source: Input, values: dict[str, Tensor], scale_I: Tensor, n_heads: int, n_kv_heads: int
) -> None:
    weight, bias = f"{source.fold_into}.weight", f"{source.fold_into}.bias"
    if source.fold_kind is FoldKind.NORM:
        values[weight] = fold_into_norm(values[weight], scale_I)
        return
    scale_O = scale_I
    if source.fold_kind is FoldKind.GROUPED_VALUE:
        scale_O = value_rows_scale(scale_I, n_heads, n_kv_heads)
    values[weight], new_bias = fold_into_linear(values[weight], values.get(bias), scale_O)
    if new_bias is not None:
        values[bias] = new_bias
