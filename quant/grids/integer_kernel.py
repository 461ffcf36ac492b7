"""The search of `integer_fit` on the CPU, group after group in registers and cache.

The steps are those of `integer_fit._search`, which says what they compute and why.

Shape legend: O rows, G groups, K columns of a group, X rows of the importance (1 or O), S shrinks,
F factors, Z shifts.
"""

import numpy as np

from tightfit.quant.grids.ggml.kernels.compiled import (
    INFINITE,
    ONE,
    ZERO,
    as_stored,
    clamped,
    compiled,
    inlined,
)
from tightfit.quant.grids.ggml.kernels.weigh import Array

LEAST, LARGEST = np.float32(2.0**-24), np.float32(65504)
"""Of the positive float16 numbers."""


@inlined
def squared_error(
    w_K: Array, importance_K: Array, scale: np.float32, low: np.float32, high: np.float32
) -> np.float32:
    """Sum importance * (w - scale * step)^2 over the nearest steps from `low` to `high`."""
    inverse = ONE / scale
    total = ZERO
    for k in range(len(w_K)):
        step = np.rint(w_K[k] * inverse)
        step = low if step < low else step
        step = high if step > high else step
        off = w_K[k] - step * scale
        total += importance_K[k] * off * off
    return total


@inlined
def least_squares_scale(
    w_K: Array, importance_K: Array, scale: np.float32, low: np.float32, high: np.float32
) -> np.float32:
    """The scale that fits these steps best; the given one where all steps are zero."""
    inverse = ONE / scale
    numerator = denominator = ZERO
    for k in range(len(w_K)):
        step = np.rint(w_K[k] * inverse)
        step = low if step < low else step
        step = high if step > high else step
        weighted = importance_K[k] * step
        numerator += weighted * w_K[k]
        denominator += weighted * step
    return numerator / denominator if denominator > ZERO else scale


@compiled
def fit_integer_groups(
    w_OGK: Array,
    importance_XGK: Array,
    top_code: np.float32,
    symmetric: bool,
    shrink_S: Array,
    factor_F: Array,
    shift_Z: Array,
    refinements: int,
    scale_OG: Array,
    zero_OG: Array,
) -> None:
    """Fill in scales, as stored, and zero points."""
    n_rows, n_groups, _ = w_OGK.shape
    middle = (top_code + ONE) / np.float32(2)
    n_shrinks = len(shrink_S)
    n_near = len(shift_Z) * len(factor_F)
    for o in range(n_rows):
        for g in range(n_groups):
            w_K, importance_K = w_OGK[o, g], importance_XGK[o % len(importance_XGK), g]
            low = high = ZERO
            for k in range(len(w_K)):
                low = w_K[k] if w_K[k] < low else low
                high = w_K[k] if w_K[k] > high else high
            full = (high - low) / top_code
            if symmetric:
                full = max(high / (middle - ONE), -low / middle)
            best_scale, best_zero = as_stored(clamped(full, LEAST, LARGEST)), middle
            coarse_scale, coarse_zero, least = best_scale, best_zero, INFINITE
            # Shrinks, then neighbours of the best of them, then refinements of the best of all.
            for tried in range(n_shrinks + n_near + refinements):
                scale, zero = best_scale, best_zero
                if tried < n_shrinks:
                    scale = as_stored(clamped(full * shrink_S[tried], LEAST, LARGEST))
                    if not symmetric:
                        zero = clamped(np.rint(low * -shrink_S[tried] / scale), ZERO, top_code)
                elif tried < n_shrinks + n_near:
                    if tried == n_shrinks:
                        coarse_scale, coarse_zero = best_scale, best_zero
                    near = tried - n_shrinks
                    factor = factor_F[near % len(factor_F)]
                    scale = as_stored(clamped(coarse_scale * factor, LEAST, LARGEST))
                    zero = clamped(coarse_zero + shift_Z[near // len(factor_F)], ZERO, top_code)
                else:
                    fitted = least_squares_scale(w_K, importance_K, scale, -zero, top_code - zero)
                    scale = as_stored(clamped(fitted, LEAST, LARGEST))
                error = squared_error(w_K, importance_K, scale, -zero, top_code - zero)
                if error < least:
                    best_scale, best_zero, least = scale, zero, error
            scale_OG[o, g], zero_OG[o, g] = best_scale, best_zero
