"""Scale searches for one sub-block, weighted, over many sub-blocks at once.

Symmetric: x ~ s l, l on a level table. For trial inverse scales the levels l = nearest(x / s) are
found, and those kept that maximize (sum w x l)^2 / sum w l^2; the scale is then
sum w x l / sum w l^2.

Affine: x ~ s q + m, q in 0..q_max. For trial ranges the codes are found, (s, m) is solved from the
weighted 2x2 least squares, and the pair of least error is kept.

Both are ggml's (`make_qx_quants`, `make_qkx3_quants` in ggml-quants.c). Ours tries more widely
(extremes of either sign, ranges that clip both ends) and goes on from the best trial, alternately
rounding and solving, which can only lower the error.

Shape legend: T weights of a sub-block, N sub-blocks, C trials. T comes first so that every sum
over a sub-block adds whole contiguous rows: many times faster than N x T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.levels import Levels

SINGULAR = 1e-5
"""Relative determinant below which a 2x2 system in float32 is noise (a sub-block on one code)."""

NEGLIGIBLE = 1e-30
"""Far below what any float16 scale can express."""


def spread(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` evenly spaced trials."""
    return tuple(first + (last - first) * i / (count - 1) for i in range(count))


def spread_affine(
    low_codes: Sequence[float], q_max: int, reach: float, count: int
) -> tuple[tuple[float, float], ...]:
    """Trials with each of `low_codes` and `count` high codes within `reach` of `q_max`."""
    high_codes = spread(q_max - reach, q_max + reach, count)
    return tuple((low, high) for low in low_codes for high in high_codes)


def reciprocal(values: Tensor) -> Tensor:
    """1 / value, and 0 where the value is 0 or so small that the quotient could overflow."""
    return torch.where(values.abs() < NEGLIGIBLE, 0.0, 1 / values)


def signed_extreme(x: Tensor) -> Tensor:
    """The value of largest magnitude along dimension 0, with its sign."""
    low, high = x.amin(dim=0), x.amax(dim=0)
    return torch.where(-low > high, low, high)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weighted:
    """Values with their search weights and what every search needs of them."""

    x_TN: Tensor
    w_TN: Tensor
    wx_TN: Tensor
    scratch_TN: Tensor
    """Levels of the trial at hand."""
    product_TN: Tensor

    @classmethod
    def of(cls, x_TN: Tensor, w_TN: Tensor) -> "Weighted":
        """Allocate the working arrays once for all trials."""
        return cls(
            x_TN=x_TN,
            w_TN=w_TN,
            wx_TN=x_TN * w_TN,
            scratch_TN=torch.empty_like(x_TN),
            product_TN=torch.empty_like(x_TN),
        )

    def level_sums(self, levels: Levels, inverse_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of w x l and w l^2, l the levels nearest to x * inverse."""
        level_TN = levels.nearest_(torch.mul(self.x_TN, inverse_N, out=self.scratch_TN))
        return self._correlations(level_TN)

    def code_sums(
        self, q_max: int, inverse_N: Tensor, shift_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of w q, w q^2 and w x q, q = round(x * inverse + shift) in 0..q_max."""
        code_TN = torch.addcmul(shift_N, self.x_TN, inverse_N, out=self.scratch_TN)
        code_TN.round_().clamp_(0, q_max)
        sum_q_N = torch.mul(self.w_TN, code_TN, out=self.product_TN).sum(dim=0)
        sum_xq_N, sum_qq_N = self._correlations(code_TN)
        return sum_q_N, sum_qq_N, sum_xq_N

    def _correlations(self, level_TN: Tensor) -> tuple[Tensor, Tensor]:
        product_TN = self.product_TN
        sum_xl_N = torch.mul(self.wx_TN, level_TN, out=product_TN).sum(dim=0)
        torch.mul(self.w_TN, level_TN, out=product_TN)
        sum_ll_N = product_TN.mul_(level_TN).sum(dim=0)
        return sum_xl_N, sum_ll_N


def search_symmetric(
    data: Weighted, levels: Levels, targets: Sequence[float], refinements: int
) -> Tensor:
    """Float32 scale (N,) of each sub-block; 0 where all values are zero.

    `targets` are the trials: the level axis position of the value of largest magnitude.
    """
    inverse_extreme_N = reciprocal(signed_extreme(data.x_TN))
    trials = [data.level_sums(levels, inverse_extreme_N * target) for target in targets]
    sum_xl_CN, sum_ll_CN = (torch.stack(sums) for sums in zip(*trials, strict=True))
    scale_CN = sum_xl_CN * reciprocal(sum_ll_CN)
    gain_1N, best_1N = (scale_CN * sum_xl_CN).max(dim=0, keepdim=True)
    scale_N, gain_N = scale_CN.gather(0, best_1N)[0], gain_1N[0]
    for _ in range(refinements):
        sum_xl_N, sum_ll_N = data.level_sums(levels, reciprocal(scale_N))
        refined_N = sum_xl_N * reciprocal(sum_ll_N)
        refined_gain_N = refined_N * sum_xl_N
        scale_N = torch.where(refined_gain_N > gain_N, refined_N, scale_N)
        gain_N = torch.maximum(gain_N, refined_gain_N)
    return scale_N


def search_affine(
    data: Weighted,
    q_max: int,
    trials: Sequence[tuple[float, float]],
    refinements: int,
    *,
    any_minimum: bool,
) -> tuple[Tensor, Tensor]:
    """Float32 scale and minimum (N,) of each sub-block; scale 0 where all values are equal.

    A trial says which codes, before clamping, the smallest and the largest value get.
    The minimum is at most 0 (K-quants store it unsigned) unless `any_minimum`.
    """
    low_N = data.x_TN.amin(dim=0)
    if not any_minimum:
        low_N = low_N.clamp_(max=0)
    inverse_range_N = reciprocal(data.x_TN.amax(dim=0) - low_N)
    sum_w_N, sum_x_N = data.w_TN.sum(dim=0), data.wx_TN.sum(dim=0)

    def solve(*code_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, minimum = solve_affine(sum_w_N, sum_x_N, *code_sums, any_minimum=any_minimum)
        error = affine_error(scale, minimum, sum_w_N, sum_x_N, *code_sums)
        return scale, minimum, error.masked_fill_(scale <= 0, torch.inf)

    tried = []
    for low_code, high_code in trials:
        inverse_N = inverse_range_N * (high_code - low_code)
        tried.append(data.code_sums(q_max, inverse_N, low_code - low_N * inverse_N))
    sums_of_all = (torch.stack(part) for part in zip(*tried, strict=True))
    scale_CN, minimum_CN, error_CN = solve(*sums_of_all)
    error_1N, best_1N = error_CN.min(dim=0, keepdim=True)
    error_N, constant_N = error_1N[0], torch.isinf(error_1N[0])
    scale_N = scale_CN.gather(0, best_1N)[0].masked_fill_(constant_N, 0.0)
    minimum_N = torch.where(constant_N, low_N, minimum_CN.gather(0, best_1N)[0])
    for _ in range(refinements):
        inverse_N = reciprocal(scale_N)
        refined = solve(*data.code_sums(q_max, inverse_N, -minimum_N * inverse_N))
        better_N = refined[2] < error_N
        scale_N = torch.where(better_N, refined[0], scale_N)
        minimum_N = torch.where(better_N, refined[1], minimum_N)
        error_N = torch.where(better_N, refined[2], error_N)
    return scale_N, minimum_N


def solve_affine(
    sum_w: Tensor,
    sum_x: Tensor,
    sum_q: Tensor,
    sum_qq: Tensor,
    sum_xq: Tensor,
    *,
    any_minimum: bool,
) -> tuple[Tensor, Tensor]:
    """Scale and minimum that minimize sum w (x - s q - m)^2; scale 0 where all codes are 0.

    Without `any_minimum` a minimum above 0, or one that a singular system (all codes equal)
    leaves open, becomes 0 and the scale is solved alone.
    """
    product = sum_w * sum_qq
    determinant = product - sum_q.square()
    singular = determinant <= SINGULAR * product
    inverse = torch.where(singular, 0.0, 1 / determinant)
    scale = (sum_w * sum_xq - sum_x * sum_q) * inverse
    minimum = (sum_qq * sum_x - sum_q * sum_xq) * inverse
    if any_minimum:
        return scale, minimum
    at_bound = singular | (minimum > 0)
    return (
        torch.where(at_bound, sum_xq * reciprocal(sum_qq), scale),
        torch.where(at_bound, 0.0, minimum),
    )


def affine_error(
    scale: Tensor,
    minimum: Tensor,
    sum_w: Tensor,
    sum_x: Tensor,
    sum_q: Tensor,
    sum_qq: Tensor,
    sum_xq: Tensor,
) -> Tensor:
    """Sum w (x - s q - m)^2 less the constant sum w x^2."""
    cross = scale * sum_q
    return scale * (scale * sum_qq - 2 * sum_xq) + minimum * (minimum * sum_w + 2 * (cross - sum_x))
