"""Affine fits on the CPU: x ~ s q + m by sub-block, x ~ d s q - dmin m by super-block.

The steps are those of `search.search_affine` and `superblock.fit_affine`, which say what they
compute and why; here they run block after block in registers and cache.

Shape legend: U super-blocks, J sub-blocks of one, T weights of a sub-block, C trials.
"""

import numpy as np

from tightfit.quant.grids.ggml.kernels.compiled import (
    INFINITE,
    ONE,
    TWO,
    ZERO,
    as_stored,
    clamped,
    compiled,
    exact,
    inlined,
    reciprocal,
    signed_extreme,
)
from tightfit.quant.grids.ggml.kernels.weigh import Array, weigh

SINGULAR = np.float32(1e-5)
"""Relative determinant below which a 2x2 system in float32 is noise."""


@inlined
def code_sums(
    x_T: Array, w_T: Array, inverse: np.float32, shift: np.float32, q_max: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Sums of w q, w q^2 and w x q, q = round(x * inverse + shift) in 0..q_max."""
    sum_q = sum_qq = sum_xq = ZERO
    for t in range(len(x_T)):
        q = np.rint(x_T[t] * inverse + shift)
        q = ZERO if q < ZERO else q
        q = q_max if q > q_max else q
        weighted = w_T[t] * q
        sum_q += weighted
        sum_qq += weighted * q
        sum_xq += weighted * x_T[t]
    return sum_q, sum_qq, sum_xq


@exact
def error_of(
    scale: np.float32,
    minimum: np.float32,
    sum_w: np.float32,
    sum_x: np.float32,
    sums: tuple[np.float32, np.float32, np.float32],
) -> np.float32:
    """Sum w (x - s q - m)^2 less the constant sum w x^2."""
    sum_q, sum_qq, sum_xq = sums
    return scale * (scale * sum_qq - TWO * sum_xq) + minimum * (
        minimum * sum_w + TWO * (scale * sum_q - sum_x)
    )


@exact
def solve(
    sum_w: np.float32,
    sum_x: np.float32,
    sums: tuple[np.float32, np.float32, np.float32],
    any_minimum: bool,
) -> tuple[np.float32, np.float32, np.float32]:
    """Scale, minimum and error of the least-squares solution; an infinite error: no scale."""
    sum_q, sum_qq, sum_xq = sums
    product = sum_w * sum_qq
    determinant = product - sum_q * sum_q
    singular = determinant <= SINGULAR * product
    scale = minimum = ZERO
    if not singular:
        inverse = ONE / determinant
        scale = (sum_w * sum_xq - sum_x * sum_q) * inverse
        minimum = (sum_qq * sum_x - sum_q * sum_xq) * inverse
    if not any_minimum and (singular or minimum > ZERO):
        scale, minimum = sum_xq * reciprocal(sum_qq), ZERO
    error = error_of(scale, minimum, sum_w, sum_x, sums) if scale > ZERO else INFINITE
    return scale, minimum, error


@inlined
def trial_sums(x_T: Array, w_T: Array, q_max: np.float32, trial_5C: Array) -> None:
    """The sums of all trials, side by side in the lanes of vector instructions.

    Rows of `trial_5C`: inverse scale and shift, then what is filled in: sums of w q, w q^2, w x q.
    """
    inverse_C, shift_C = trial_5C[0], trial_5C[1]
    q_C, qq_C, xq_C = trial_5C[2], trial_5C[3], trial_5C[4]
    for c in range(len(inverse_C)):
        q_C[c] = qq_C[c] = xq_C[c] = ZERO
    for t in range(len(x_T)):
        x, w = x_T[t], w_T[t]
        for c in range(len(inverse_C)):
            q = np.rint(x * inverse_C[c] + shift_C[c])
            q = ZERO if q < ZERO else q
            q = q_max if q > q_max else q
            weighted = w * q
            q_C[c] += weighted
            qq_C[c] += weighted * q
            xq_C[c] += weighted * x


@inlined
def search(
    x_T: Array,
    w_T: Array,
    q_max: np.float32,
    trials_C2: Array,
    refinements: int,
    any_minimum: bool,
    trial_5C: Array,
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Scale and minimum of a sub-block, then its sums of w and w x; `trial_5C` is scratch."""
    low = high = x_T[0]
    sum_w = sum_x = ZERO
    for t in range(len(x_T)):
        low = x_T[t] if x_T[t] < low else low
        high = x_T[t] if x_T[t] > high else high
        sum_w += w_T[t]
        sum_x += w_T[t] * x_T[t]
    if not any_minimum and low > ZERO:
        low = ZERO
    inverse_range = reciprocal(high - low)
    for c in range(len(trials_C2)):
        trial_5C[0, c] = inverse_range * (trials_C2[c, 1] - trials_C2[c, 0])
        trial_5C[1, c] = trials_C2[c, 0] - low * trial_5C[0, c]
    trial_sums(x_T, w_T, q_max, trial_5C)
    scale, minimum, least = ZERO, low, INFINITE
    for c in range(len(trials_C2)):
        sums = (trial_5C[2, c], trial_5C[3, c], trial_5C[4, c])
        tried = solve(sum_w, sum_x, sums, any_minimum)
        if tried[2] < least:
            scale, minimum, least = tried
    for _ in range(refinements):
        inverse = reciprocal(scale)
        sums = code_sums(x_T, w_T, inverse, -minimum * inverse, q_max)
        tried = solve(sum_w, sum_x, sums, any_minimum)
        if tried[2] < least:
            scale, minimum, least = tried
    return scale, minimum, sum_w, sum_x


@compiled
def search_affine_blocks(
    x_U1T: Array,
    importance_U1T: Array,
    kind: int,
    mean_factor: np.float32,
    q_max: np.float32,
    trials_C2: Array,
    refinements: int,
    d_U: Array,
    m_U: Array,
) -> None:
    """Scales and minima, of either sign, of blocks without sub-blocks, in float32."""
    width = x_U1T.shape[2]
    above_T, w_1T = np.empty(width, np.float32), np.empty((1, width), np.float32)
    trial_5C = np.empty((5, len(trials_C2)), np.float32)
    for u in range(len(x_U1T)):
        x_1T = x_U1T[u]
        weigh(x_1T, importance_U1T[u % len(importance_U1T)], kind, mean_factor, w_1T)
        # Taken from the smallest value: in a block far from zero the differences of large sums
        # would hide the error.
        low = x_1T[0].min()
        for t in range(width):
            above_T[t] = x_1T[0, t] - low
        d_U[u], minimum, _, _ = search(
            above_T, w_1T[0], q_max, trials_C2, refinements, True, trial_5C
        )
        m_U[u] = low + minimum


@inlined
def best_super_scale(
    wanted_J: Array, curvature_J: Array, reach_C: Array, low: np.float32, high: np.float32
) -> np.float32:
    """The stored d for which integers times d come nearest to the wanted scales."""
    inverse_extreme = reciprocal(signed_extreme(wanted_J))
    best = most = -INFINITE
    for c in range(len(reach_C)):
        inverse = reach_C[c] * inverse_extreme
        sum_xs = sum_ss = ZERO
        for j in range(len(wanted_J)):
            integer = clamped(np.rint(wanted_J[j] * inverse), low, high)
            weighted = integer * curvature_J[j]
            sum_xs += weighted * wanted_J[j]
            sum_ss += weighted * integer
        d = sum_xs * reciprocal(sum_ss)
        if d * sum_xs > most:
            best, most = d, d * sum_xs
    return as_stored(best)


@exact
def solve_super(
    d: np.float32, dmin: np.float32, integer_J: Array, low_J: Array, sums_J5: Array
) -> tuple[np.float32, np.float32]:
    """Least-squares d and dmin for fixed codes and integers, as stored."""
    a = b = c = e = f = ZERO
    for j in range(len(integer_J)):
        s, m = integer_J[j], low_J[j]
        a += s * s * sums_J5[j, 3]
        b += s * m * sums_J5[j, 2]
        c += m * m * sums_J5[j, 0]
        e += s * sums_J5[j, 4]
        f += m * sums_J5[j, 1]
    determinant = a * c - b * b
    if determinant > SINGULAR * a * c:
        solved_dmin = (b * e - a * f) / determinant
        if solved_dmin >= ZERO:
            dmin = as_stored(solved_dmin)
    solved_d = as_stored((e + dmin * b) * reciprocal(a))
    return (solved_d if solved_d > ZERO else d), dmin


@exact
def best_integers(
    d: np.float32, dmin: np.float32, integer: np.float32, integer_max: np.float32, sums_5: Array
) -> tuple[np.float32, np.float32]:
    """The integer scale, one step either way, and the minimum that goes with it."""
    sum_w, sum_x = sums_5[0], sums_5[1]
    sums = (sums_5[2], sums_5[3], sums_5[4])
    best_integer = best_low = ZERO
    least = INFINITE
    for step in range(-1, 2):
        tried = clamped(integer + np.float32(step), ZERO, integer_max)
        wanted = (d * tried * sums[0] - sum_x) * reciprocal(sum_w * dmin)
        low = clamped(np.rint(wanted), ZERO, integer_max)
        error = error_of(d * tried, -dmin * low, sum_w, sum_x, sums)
        if error < least:
            best_integer, best_low, least = tried, low, error
    return best_integer, best_low


@compiled
def fit_affine_blocks(
    x_UJT: Array,
    importance_UJT: Array,
    kind: int,
    mean_factor: np.float32,
    q_max: np.float32,
    trials_C2: Array,
    refinements: int,
    integer_max: np.float32,
    reach_C: Array,
    passes: int,
    d_U: Array,
    dmin_U: Array,
    integer_UJ: Array,
    low_UJ: Array,
) -> None:
    """Fill in stored d and dmin, integer scales and minima.

    `importance_UJT` may have one super-block of every column for all rows (its own stride of 0).
    """
    n_blocks, n_sub_blocks, width = x_UJT.shape
    w_JT = np.empty((n_sub_blocks, width), np.float32)
    sums_J5 = np.empty((n_sub_blocks, 5), np.float32)
    trial_5C = np.empty((5, len(trials_C2)), np.float32)
    scale_J, minimum_J = np.empty(n_sub_blocks, np.float32), np.empty(n_sub_blocks, np.float32)
    for u in range(n_blocks):
        x_JT, integer_J, low_J = x_UJT[u], integer_UJ[u], low_UJ[u]
        weigh(x_JT, importance_UJT[u % len(importance_UJT)], kind, mean_factor, w_JT)
        for j in range(n_sub_blocks):
            scale_J[j], minimum, sums_J5[j, 0], sums_J5[j, 1] = search(
                x_JT[j], w_JT[j], q_max, trials_C2, refinements, False, trial_5C
            )
            minimum_J[j] = -minimum
        d = best_super_scale(scale_J, sums_J5[:, 0], reach_C, ZERO, integer_max)
        dmin = best_super_scale(minimum_J, sums_J5[:, 0], reach_C, ZERO, integer_max)
        for j in range(n_sub_blocks):
            integer_J[j] = clamped(np.rint(scale_J[j] * reciprocal(d)), ZERO, integer_max)
            low_J[j] = clamped(np.rint(minimum_J[j] * reciprocal(dmin)), ZERO, integer_max)
        for _ in range(passes):
            for j in range(n_sub_blocks):
                inverse = reciprocal(d * integer_J[j])
                sums_J5[j, 2], sums_J5[j, 3], sums_J5[j, 4] = code_sums(
                    x_JT[j], w_JT[j], inverse, dmin * low_J[j] * inverse, q_max
                )
            d, dmin = solve_super(d, dmin, integer_J, low_J, sums_J5)
            for j in range(n_sub_blocks):
                integer_J[j], low_J[j] = best_integers(
                    d, dmin, integer_J[j], integer_max, sums_J5[j]
                )
        d_U[u], dmin_U[u] = d, dmin
