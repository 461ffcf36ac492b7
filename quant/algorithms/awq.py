"""AWQ: scale the input channels that matter up before rounding, and undo it in what feeds them.

For y = W x and a positive scale s per input channel, y = (W diag(s)) (x / s) exactly, while
rounding W diag(s) moves error away from the channels with a large s. Source: Lin et al. 2023,
"AWQ", section 3.2 and equation 5:

    s = abs_mean ** alpha,   alpha in [0, 1] by grid search, normalised to sqrt(max * min) = 1

Every alpha is judged by the exact output error tr(D H D^T) with D = round(W diag(s)) / s - W, which
needs the Hessian and no activations. alpha = 0 is plain rounding and is among the candidates, so
the scale found is never worse than none on the calibration data. The rounding inside the search is
round-to-nearest with importance; the weights scaled by the result then go to `rtn`, or to `gptq`
with `InputStatistics.scaled`.

`search_clip` is AWQ's second half (section 4.1 of the code release): per group, the clipping of
the largest weights with the least output error under the group's own diagonal block of H.

Shape legend: O output rows, I input columns, G groups, K columns of a group, S sampled rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.hessian import output_error
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Grid
from tightfit.quant.grids.integer import IntegerGrid

_STRIDES = (4, 2, 1)
"""Steps of alpha between tries: over all of [0, 1], then twice on either side of the best. Of 21
steps at most 10 are tried; all of them lower the held-out error of a small Qwen2 by 0.1 %."""
_N_CLIPS = 10
_SMALLEST_CLIP = 0.5
"""Clipping below half of the largest weight never won in the paper's own search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AwqSettings:
    """How the scale is searched."""

    n_steps: int = 20
    """Steps of alpha over [0, 1]."""
    max_rows: int | None = 256
    """Evenly spaced rows of each linear that judge an alpha; None: all. With 512 the held-out error
    of a small Qwen2 changes by 0.2 %, at twice the time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AwqScale:
    """The scale found for the channels of one input."""

    scale_I: Tensor
    """float32 (I,), positive: weights are multiplied by it, the input is divided."""
    alpha: float
    """0 when plain rounding won; `scale_I` is then all ones."""
    error: float
    """Output error over the sampled rows with the scale."""
    plain_error: float
    """The same without."""


def search_scale(
    weights: Mapping[str, Tensor],
    hessian_II: Tensor,
    abs_mean_I: Tensor,
    grids: Mapping[str, Grid],
    settings: AwqSettings | None = None,
) -> AwqScale:
    """The best scale for the linears (O, I) that read one input, each on its own grid.

    Pass `abs_mean_I` through `mean_over_query_groups` when the scale is to be folded into a v_proj
    that feeds several query heads: equal means give equal scales.
    Raises `QuantizationError` as the grids do.
    """
    settings = settings or AwqSettings()
    sampled = {name: _sample_rows(w_OI, settings.max_rows) for name, w_OI in weights.items()}

    def error_of(step: int) -> float:
        scale_I = _channel_scale(abs_mean_I, step / settings.n_steps)
        importance_I = hessian_II.diagonal() / scale_I.square()
        error = 0.0
        for name, w_SI in sampled.items():
            grid = grids[name]
            rounded_SI = grid.dequantize(rtn(scale_columns(w_SI, scale_I), grid, importance_I))
            error += output_error(rounded_SI.div_(scale_I).sub_(w_SI), hessian_II)
        return error

    errors = {step: error_of(step) for step in range(0, settings.n_steps + 1, _STRIDES[0])}
    for stride in _STRIDES[1:]:
        best = min(errors, key=errors.__getitem__)
        near = {best - stride, best + stride} & set(range(settings.n_steps + 1))
        errors |= {step: error_of(step) for step in sorted(near - errors.keys())}
    best = min(errors, key=errors.__getitem__)
    return AwqScale(
        scale_I=_channel_scale(abs_mean_I, best / settings.n_steps),
        alpha=best / settings.n_steps,
        error=errors[best],
        plain_error=errors[0],
    )


def _sample_rows(w_OI: Tensor, max_rows: int | None) -> Tensor:
    n_rows = w_OI.shape[0]
    if max_rows is None or n_rows <= max_rows:
        return w_OI
    return w_OI[torch.linspace(0, n_rows - 1, max_rows, device=w_OI.device).long()]


def _channel_scale(abs_mean_I: Tensor, alpha: float) -> Tensor:
    """abs_mean ** alpha around 1; channels that are never active keep 1."""
    active_I = abs_mean_I > 0
    scale_I = torch.ones_like(abs_mean_I)
    if active_I.any():
        powers = abs_mean_I[active_I].pow(alpha)
        # The product of the two roots, because max * min may underflow.
        scale_I[active_I] = powers / (powers.max().sqrt() * powers.min().sqrt())
    return scale_I


def scale_columns(w_OI: Tensor, scale_I: Tensor) -> Tensor:
    """W diag(s): what the linears that read the scaled input become."""
    return w_OI * scale_I


def fold_into_norm(norm_weight_I: Tensor, scale_I: Tensor) -> Tensor:
    """Weight of the norm before, so that its output is divided by the scale."""
    return norm_weight_I / scale_I


def fold_into_linear(
    w_OI: Tensor, bias_O: Tensor | None, scale_O: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Rows and bias of the linear before, so that its output is divided by the scale."""
    return w_OI / scale_O[:, None], None if bias_O is None else bias_O / scale_O


def mean_over_query_groups(values_I: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Average over the query heads that read one value head, repeated for each of them.

    `values_I` belongs to the input of o_proj, (n_heads * head_dim,); query heads of one group are
    neighbours, as in `transformers`' `repeat_kv`.
    """
    grouped = _by_query_group(values_I, n_heads, n_kv_heads)
    return grouped.mean(dim=1, keepdim=True).expand_as(grouped).reshape(-1)


def value_rows_scale(scale_I: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """The scale of v_proj's rows (n_kv_heads * head_dim,) for `fold_into_linear`."""
    grouped = _by_query_group(scale_I, n_heads, n_kv_heads)
    assert torch.equal(grouped, grouped[:, :1].expand_as(grouped)), "scale differs inside a group"
    return grouped[:, 0].reshape(-1)


def _by_query_group(values_I: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    head_dim = values_I.shape[0] // n_heads
    return values_I.reshape(n_kv_heads, n_heads // n_kv_heads, head_dim)


def search_clip(w_OI: Tensor, hessian_II: Tensor, grid: Grid) -> Tensor:
    """Weights (O, I) with the largest of each row and group clipped where that lowers the error.

    For integer grids; the others' fits have no clipping range. Meant before `rtn`: GPTQ would take
    the clipped weights for the true ones, and it corrects rounding errors anyway. Not for q_proj
    and k_proj, whose errors multiply (the paper's code leaves them out too).
    """
    if not isinstance(grid, IntegerGrid):
        raise QuantizationError(
            f"{grid.name} has no clipping range to search",
            allowed="AWQ clipping on integer grids (int*)",
            hint="leave clipping out: the grid's own fit searches its scales",
        )
    n_rows, n_columns = w_OI.shape
    width = grid.group_size or n_columns
    blocks_GKK = torch.stack(
        [
            hessian_II[start : start + width, start : start + width]
            for start in range(0, n_columns, width)
        ]
    )
    w_GOK = w_OI.reshape(n_rows, -1, width).transpose(0, 1)
    largest_GO1 = w_GOK.abs().amax(dim=2, keepdim=True)
    best_GO1 = torch.ones_like(largest_GO1)
    least_GO1 = torch.full_like(largest_GO1, torch.inf)
    for ratio in torch.linspace(1, _SMALLEST_CLIP, _N_CLIPS + 1, device="cpu").tolist():
        clipped_GOK = torch.clamp(w_GOK, -ratio * largest_GO1, ratio * largest_GO1)
        clipped_OI = clipped_GOK.transpose(0, 1).reshape(n_rows, n_columns)
        rounded_OI = grid.dequantize(rtn(clipped_OI, grid, hessian_II.diagonal()))
        difference_GOK = rounded_OI.reshape(n_rows, -1, width).transpose(0, 1) - w_GOK
        error_GO1 = ((difference_GOK @ blocks_GKK) * difference_GOK).sum(dim=2, keepdim=True)
        better_GO1 = error_GO1 < least_GO1
        best_GO1 = torch.where(better_GO1, ratio, best_GO1)
        least_GO1 = torch.where(better_GO1, error_GO1, least_GO1)
    limit_GO1 = best_GO1 * largest_GO1
    return torch.clamp(w_GOK, -limit_GO1, limit_GO1).transpose(0, 1).reshape(n_rows, n_columns)
