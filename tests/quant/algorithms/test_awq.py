"""AWQ against running the activations through both layers, and its folding against a forward."""

import pytest
import torch
from dense_reference import awq_errors
from layer_error import correlated_layer
from torch import Tensor
from torch.nn import functional

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.awq import (
    AwqSettings,
    fold_into_linear,
    fold_into_norm,
    mean_over_query_groups,
    scale_columns,
    search_clip,
    search_scale,
    value_rows_scale,
)
from tightfit.quant.algorithms.hessian import output_error
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import GRIDS

LAYER = correlated_layer(24, 256, 1024, seed=5)
STATISTICS = LAYER.statistics()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["int4-g128-sym", "int3-channel-asym", "Q4_0", "fp8-e4m3-channel"])
def test_search_equals_running_the_activations(name: str) -> None:
    grid = GRIDS[name]
    found = search_scale(
        {"w": LAYER.w_OI}, STATISTICS.hessian_II, STATISTICS.abs_mean_I, {"w": grid}
    )
    errors, scales = awq_errors(LAYER.w_OI, LAYER.calibration_TI, grid, STATISTICS.importance_I, 20)
    best = min(range(21), key=errors.__getitem__)
    step = round(found.alpha * 20)
    # The error of 24 rows is rough in alpha: between the tries the very best may be missed.
    assert errors[best] <= errors[step] <= errors[best] * 1.02
    # Scales that differ in the last bit round some weight the other way.
    assert found.error == pytest.approx(errors[step], rel=5e-3)
    assert found.plain_error == pytest.approx(errors[0], rel=5e-3)
    torch.testing.assert_close(found.scale_I, scales[step], rtol=1e-4, atol=0)


def test_linears_sharing_an_input_are_judged_together() -> None:
    weights = {"a": LAYER.w_OI[:16], "b": LAYER.w_OI[16:]}
    grids = {"a": GRIDS["int4-g128-sym"], "b": GRIDS["int2-g128-sym"]}
    settings = AwqSettings(n_steps=5)
    found = search_scale(weights, STATISTICS.hessian_II, STATISTICS.abs_mean_I, grids, settings)
    totals = [0.0] * 6
    for linear, w in weights.items():
        errors, _ = awq_errors(
            w, LAYER.calibration_TI, grids[linear], STATISTICS.importance_I, settings.n_steps
        )
        totals = [total + error for total, error in zip(totals, errors, strict=True)]
    assert found.alpha == totals.index(min(totals)) / 5
    assert found.error == pytest.approx(min(totals), rel=1e-3)


def test_sampled_rows_judge_alone() -> None:
    settings = AwqSettings(n_steps=2, max_rows=4)
    found = search_scale(
        {"w": LAYER.w_OI},
        STATISTICS.hessian_II,
        STATISTICS.abs_mean_I,
        {"w": GRIDS["int4-g128-sym"]},
        settings,
    )
    rows = LAYER.w_OI[[0, 7, 15, 23]]
    rounded = GRIDS["int4-g128-sym"].dequantize(
        rtn(rows, GRIDS["int4-g128-sym"], STATISTICS.importance_I)
    )
    assert found.plain_error == pytest.approx(output_error(rounded - rows, STATISTICS.hessian_II))


def test_channels_that_are_never_active_keep_scale_one() -> None:
    # A channel in 16 is 30 times larger than the others: the case AWQ was made for.
    x = normal(400, 256) * torch.where(torch.arange(256) % 16 == 0, 30.0, 1.0)
    x[:, 7] = 0
    hessian, mean = x.T @ x / 400, x.abs().mean(dim=0)
    found = search_scale({"w": LAYER.w_OI}, hessian, mean, {"w": GRIDS["int4-g128-sym"]})
    assert found.alpha > 0
    assert found.error < 0.9 * found.plain_error
    assert found.scale_I[7] == 1
    assert (found.scale_I > 0).all()


def test_folding_keeps_the_function() -> None:
    x, norm, up, down = (
        normal(9, 32),
        1 + normal(32),
        normal(48, 32, seed=1),
        normal(16, 48, seed=2),
    )
    bias = normal(48, seed=3)
    s_in, s_mid = torch.linspace(0.25, 3, 32), torch.linspace(4, 0.5, 48)

    def forward(norm: Tensor, up: Tensor, bias: Tensor, down: Tensor) -> Tensor:
        hidden = functional.rms_norm(x, (32,), norm)
        return functional.linear(functional.linear(hidden, up, bias), down)

    folded_up, folded_bias = fold_into_linear(scale_columns(up, s_in), bias, s_mid)
    assert folded_bias is not None
    folded = forward(fold_into_norm(norm, s_in), folded_up, folded_bias, scale_columns(down, s_mid))
    torch.testing.assert_close(folded, forward(norm, up, bias, down), rtol=1e-4, atol=1e-4)
    assert fold_into_linear(up, None, s_mid)[1] is None


def test_folding_into_values_that_several_heads_read() -> None:
    n_heads, n_kv_heads, head_dim = 6, 2, 8
    probabilities = normal(n_heads, 5, 5).softmax(dim=-1)
    x, v, o = normal(5, 32), normal(n_kv_heads * head_dim, 32, seed=1), normal(24, 48, seed=2)
    bias = normal(n_kv_heads * head_dim, seed=3)
    mean = mean_over_query_groups(normal(48, seed=4).abs(), n_heads, n_kv_heads)

    def forward(v: Tensor, bias: Tensor, o: Tensor) -> Tensor:
        values = functional.linear(x, v, bias).reshape(5, n_kv_heads, head_dim).transpose(0, 1)
        heads = probabilities @ values.repeat_interleave(n_heads // n_kv_heads, dim=0)
        return functional.linear(heads.transpose(0, 1).reshape(5, -1), o)

    scale = mean.sqrt()
    rows = value_rows_scale(scale, n_heads, n_kv_heads)
    folded_v, folded_bias = fold_into_linear(v, bias, rows)
    assert folded_bias is not None
    torch.testing.assert_close(
        forward(folded_v, folded_bias, scale_columns(o, scale)), forward(v, bias, o)
    )


@pytest.mark.parametrize("name", ["int2-g64-sym", "int3-g128-asym", "int4-channel-sym"])
def test_clipping_lowers_the_held_out_error(name: str) -> None:
    grid = GRIDS[name]
    importance = STATISTICS.importance_I
    clipped = search_clip(LAYER.w_OI, STATISTICS.hessian_II, grid)
    plain = LAYER.held_out_error(grid.dequantize(rtn(LAYER.w_OI, grid, importance)))
    assert LAYER.held_out_error(grid.dequantize(rtn(clipped, grid, importance))) < plain


def test_clip_search_is_that_of_every_group_alone() -> None:
    grid = GRIDS["int3-g64-sym"]
    w, hessian = LAYER.w_OI[:3], STATISTICS.hessian_II
    clipped = search_clip(w, hessian, grid)
    for row in range(3):
        for start in range(0, 256, 64):
            columns = slice(start, start + 64)
            group, block = w[row : row + 1, columns], hessian[columns, columns]
            candidates = []
            for ratio in torch.linspace(1, 0.5, 11).tolist():
                limit = ratio * group.abs().max()
                candidate = group.clamp(-limit, limit)
                rounded = grid.dequantize(rtn(candidate, grid, block.diagonal()))
                difference = (rounded - group).double()
                error = (difference @ block.double() @ difference.T).item()
                candidates.append((error, candidate))
            best = min(candidates, key=lambda pair: pair[0])[1]
            torch.testing.assert_close(clipped[row : row + 1, columns], best)


def test_clipping_is_refused_where_the_grid_has_no_range() -> None:
    with pytest.raises(QuantizationError, match="no clipping range"):
        search_clip(LAYER.w_OI, STATISTICS.hessian_II, GRIDS["Q4_0"])
