"""Fitting a super-block: one float16 scale over integer scales of its sub-blocks.

For fixed codes the error of a sub-block is a quadratic in its scale (and minimum), so given the
float16 values the best integers follow in closed form, and given the integers the best float16
values are a least-squares solution over the whole super-block. After a search for the first
float16 values (as ggml's `make_qp_quants` does) these two and the rounding of the codes alternate,
always on the values as stored. ggml stops after the first rounding.

Shape legend: T weights of a sub-block, J sub-blocks, U super-blocks, N = J * U, C candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.levels import Levels
from tightfit.quant.grids.ggml.search import (
    SINGULAR,
    Weighted,
    affine_error,
    reciprocal,
    search_affine,
    search_symmetric,
    signed_extreme,
)

FLOAT16_LEAST = 2.0**-24
"""Smallest float16 above zero."""


def as_stored(values: Tensor) -> Tensor:
    """Float32 values rounded to what float16 holds; never to zero unless they are zero.

    A super-block scale that vanished would take the whole block with it, though its integers
    can still use the smallest float16. Overflow to infinity is left for the caller to refuse.
    """
    stored = values.to(torch.float16).to(torch.float32)
    least = torch.copysign(torch.full_like(values, FLOAT16_LEAST), values)
    return torch.where((stored == 0) & (values != 0), least, stored)


def fit_symmetric(
    data: Weighted,
    n_sub_blocks: int,
    levels: Levels,
    targets: Sequence[float],
    refinements: int,
    integer_bounds: tuple[int, int],
    passes: int,
) -> tuple[Tensor, Tensor]:
    """Float32 (U,) scale as stored, and float32 integers (J, U) within `integer_bounds`."""
    scale_N = search_symmetric(data, levels, targets, refinements)
    low, high = integer_bounds

    def quadratic(scale_N: Tensor) -> tuple[Tensor, Tensor]:
        sum_xl_N, sum_ll_N = data.level_sums(levels, reciprocal(scale_N))
        return sum_xl_N.view(n_sub_blocks, -1), sum_ll_N.view(n_sub_blocks, -1)

    sum_xl_JU, sum_ll_JU = quadratic(scale_N)
    wanted_JU = sum_xl_JU * reciprocal(sum_ll_JU)
    d_U = _best_super_scale(wanted_JU, sum_ll_JU, trial_reach(low), low, high)
    integer_JU = (wanted_JU * reciprocal(d_U)).round_().clamp_(low, high)
    for _ in range(passes):
        sum_xl_JU, sum_ll_JU = quadratic((d_U * integer_JU).view(-1))
        curvature_U = (integer_JU.square() * sum_ll_JU).sum(dim=0)
        d_U = as_stored((integer_JU * sum_xl_JU).sum(dim=0) * reciprocal(curvature_U))
        wanted_JU = sum_xl_JU * reciprocal(sum_ll_JU * d_U)
        integer_JU = wanted_JU.round_().clamp_(low, high)
    return d_U, integer_JU


def fit_affine(
    data: Weighted,
    n_sub_blocks: int,
    q_max: int,
    trials: Sequence[tuple[float, float]],
    refinements: int,
    integer_max: int,
    passes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stored scale and minimum scale (U,), then integer scales and minima (J, U), all float32."""
    scale_N, minimum_N = search_affine(data, q_max, trials, refinements, any_minimum=False)
    scale_JU, minimum_JU = scale_N.view(n_sub_blocks, -1), -minimum_N.view(n_sub_blocks, -1)
    sum_w_JU = data.w_TN.sum(dim=0).view(n_sub_blocks, -1)
    sum_x_JU = data.wx_TN.sum(dim=0).view(n_sub_blocks, -1)
    reach = trial_reach(integer_max)
    d_U = _best_super_scale(scale_JU, sum_w_JU, reach, 0, integer_max)
    dmin_U = _best_super_scale(minimum_JU, sum_w_JU, reach, 0, integer_max)
    integer_JU = (scale_JU * reciprocal(d_U)).round_().clamp_(0, integer_max)
    low_JU = (minimum_JU * reciprocal(dmin_U)).round_().clamp_(0, integer_max)
    for _ in range(passes):
        inverse_JU = reciprocal(d_U * integer_JU)
        shift_JU = dmin_U * low_JU * inverse_JU
        code_sums = data.code_sums(q_max, inverse_JU.view(-1), shift_JU.view(-1))
        sums = (sum_w_JU, sum_x_JU, *(part.view(n_sub_blocks, -1) for part in code_sums))
        d_U, dmin_U = _solve_super_affine(d_U, dmin_U, integer_JU, low_JU, *sums)
        integer_JU, low_JU = _best_integers(d_U, dmin_U, integer_JU, integer_max, *sums)
    return d_U, dmin_U, integer_JU, low_JU


def trial_reach(bound: int) -> tuple[float, ...]:
    """Trials of where the extreme sub-block scale comes to lie on the integer axis."""
    return tuple(bound * (1 + 0.0125 * step) for step in range(-6, 5))


def _best_super_scale(
    wanted_JU: Tensor, curvature_JU: Tensor, trials: Sequence[float], low: int, high: int
) -> Tensor:
    """The stored d (U,) for which integers times d come nearest to the wanted scales."""
    trials_C11 = torch.tensor(trials, device=wanted_JU.device)[:, None, None]
    inverse_CJU = trials_C11 * reciprocal(signed_extreme(wanted_JU))
    integer_CJU = (wanted_JU * inverse_CJU).round_().clamp_(low, high)
    weighted_CJU = integer_CJU * curvature_JU
    sum_xs_CU = (weighted_CJU * wanted_JU).sum(dim=1)
    d_CU = sum_xs_CU * reciprocal((weighted_CJU * integer_CJU).sum(dim=1))
    best_1U = (d_CU * sum_xs_CU).argmax(dim=0, keepdim=True)
    return as_stored(d_CU.gather(0, best_1U)[0])


def _solve_super_affine(
    d_U: Tensor,
    dmin_U: Tensor,
    integer_JU: Tensor,
    low_JU: Tensor,
    sum_w_JU: Tensor,
    sum_x_JU: Tensor,
    sum_q_JU: Tensor,
    sum_qq_JU: Tensor,
    sum_xq_JU: Tensor,
) -> tuple[Tensor, Tensor]:
    """Least-squares d and dmin of x ~ d s q - dmin m for fixed codes and integers, as stored."""
    a_U = (integer_JU.square() * sum_qq_JU).sum(dim=0)
    b_U = (integer_JU * low_JU * sum_q_JU).sum(dim=0)
    c_U = (low_JU.square() * sum_w_JU).sum(dim=0)
    e_U = (integer_JU * sum_xq_JU).sum(dim=0)
    f_U = (low_JU * sum_x_JU).sum(dim=0)
    determinant_U = a_U * c_U - b_U.square()
    solved_dmin_U = (b_U * e_U - a_U * f_U) / determinant_U
    usable_U = (determinant_U > SINGULAR * a_U * c_U) & (solved_dmin_U >= 0)
    dmin_U = torch.where(usable_U, as_stored(solved_dmin_U), dmin_U)
    solved_d_U = as_stored((e_U + dmin_U * b_U) * reciprocal(a_U))
    return torch.where(solved_d_U > 0, solved_d_U, d_U), dmin_U


def _best_integers(
    d_U: Tensor,
    dmin_U: Tensor,
    integer_JU: Tensor,
    integer_max: int,
    sum_w_JU: Tensor,
    sum_x_JU: Tensor,
    sum_q_JU: Tensor,
    sum_qq_JU: Tensor,
    sum_xq_JU: Tensor,
) -> tuple[Tensor, Tensor]:
    """The integer scale, one step either way, and the minimum that goes with it."""
    sums = (sum_w_JU, sum_x_JU, sum_q_JU, sum_qq_JU, sum_xq_JU)
    steps_C11 = torch.tensor([-1.0, 0.0, 1.0], device=d_U.device)[:, None, None]
    integer_CJU = (integer_JU + steps_C11).clamp_(0, integer_max)
    scale_CJU = d_U * integer_CJU
    wanted_CJU = (scale_CJU * sum_q_JU - sum_x_JU) * reciprocal(sum_w_JU * dmin_U)
    low_CJU = wanted_CJU.round_().clamp_(0, integer_max)
    error_CJU = affine_error(scale_CJU, -dmin_U * low_CJU, *sums)
    best_1JU = error_CJU.argmin(dim=0, keepdim=True)
    return integer_CJU.gather(0, best_1JU)[0], low_CJU.gather(0, best_1JU)[0]
