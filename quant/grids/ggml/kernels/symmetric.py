"""Symmetric fits on the CPU: x ~ s l by sub-block, x ~ d s l by super-block, l on a level table.

The steps are those of `search.search_symmetric` and `superblock.fit_symmetric`, which say what
they compute and why; here they run block after block in registers and cache.

A table is uniform (every integer from `first` to `last`, no `rises`) or a codebook: its first
level, and for each further one the middle above which it is nearer and how far it rises.

Shape legend: U super-blocks, J sub-blocks of one, T weights of a sub-block, C trials, R rises.
"""

import numpy as np

from tightfit.quant.grids.ggml.kernels.affine import best_super_scale
from tightfit.quant.grids.ggml.kernels.compiled import (
    INFINITE,
    ZERO,
    as_stored,
    clamped,
    compiled,
    inlined,
    reciprocal,
    signed_extreme,
)
from tightfit.quant.grids.ggml.kernels.weigh import Array, weigh


@inlined
def uniform_sums(
    x_T: Array, w_T: Array, inverse: np.float32, first: np.float32, last: np.float32
) -> tuple[np.float32, np.float32]:
    """Sums of w x l and w l^2, l the integers nearest to x * inverse."""
    sum_xl = sum_ll = ZERO
    for t in range(len(x_T)):
        level = np.rint(x_T[t] * inverse)
        level = first if level < first else level
        level = last if level > last else level
        weighted = w_T[t] * level
        sum_xl += weighted * x_T[t]
        sum_ll += weighted * level
    return sum_xl, sum_ll


@inlined
def codebook_sums(
    x_T: Array, w_T: Array, inverse: np.float32, first: np.float32, rises_R2: Array, level_T: Array
) -> tuple[np.float32, np.float32]:
    """The same on a codebook."""
    for t in range(len(x_T)):
        level_T[t] = first
    for r in range(len(rises_R2)):
        middle, rise = rises_R2[r, 0], rises_R2[r, 1]
        for t in range(len(x_T)):
            level_T[t] += rise if x_T[t] * inverse >= middle else ZERO
    sum_xl = sum_ll = ZERO
    for t in range(len(x_T)):
        weighted = w_T[t] * level_T[t]
        sum_xl += weighted * x_T[t]
        sum_ll += weighted * level_T[t]
    return sum_xl, sum_ll


@inlined
def level_sums(
    x_T: Array,
    w_T: Array,
    inverse: np.float32,
    first: np.float32,
    last: np.float32,
    rises_R2: Array,
    level_T: Array,
) -> tuple[np.float32, np.float32]:
    """On whichever table."""
    if len(rises_R2):
        return codebook_sums(x_T, w_T, inverse, first, rises_R2, level_T)
    return uniform_sums(x_T, w_T, inverse, first, last)


@inlined
def codebook_trials(
    x_T: Array,
    w_T: Array,
    inverse_C: Array,
    first: np.float32,
    rises_R2: Array,
    level_C: Array,
    xl_C: Array,
    ll_C: Array,
) -> None:
    """Sums of all trials on a codebook, side by side in the lanes of vector instructions."""
    for c in range(len(inverse_C)):
        xl_C[c] = ll_C[c] = ZERO
    for t in range(len(x_T)):
        x, w = x_T[t], w_T[t]
        for c in range(len(inverse_C)):
            level_C[c] = first
        for r in range(len(rises_R2)):
            middle, rise = rises_R2[r, 0], rises_R2[r, 1]
            for c in range(len(inverse_C)):
                level_C[c] += rise if x * inverse_C[c] >= middle else ZERO
        for c in range(len(inverse_C)):
            weighted = w * level_C[c]
            xl_C[c] += weighted * x
            ll_C[c] += weighted * level_C[c]


@inlined
def search(
    x_T: Array,
    w_T: Array,
    first: np.float32,
    last: np.float32,
    rises_R2: Array,
    targets_C: Array,
    refinements: int,
    trial_4C: Array,
    level_T: Array,
) -> np.float32:
    """Scale of a sub-block; 0 where all values are zero. `trial_4C` and `level_T` are scratch."""
    inverse_C, xl_C, ll_C = trial_4C[0], trial_4C[1], trial_4C[2]
    inverse_extreme = reciprocal(signed_extreme(x_T))
    for c in range(len(targets_C)):
        inverse_C[c] = inverse_extreme * targets_C[c]
    if len(rises_R2):
        codebook_trials(x_T, w_T, inverse_C, first, rises_R2, trial_4C[3], xl_C, ll_C)
    else:
        for c in range(len(targets_C)):
            xl_C[c], ll_C[c] = uniform_sums(x_T, w_T, inverse_C[c], first, last)
    scale, most = ZERO, -INFINITE
    for c in range(len(targets_C)):
        tried = xl_C[c] * reciprocal(ll_C[c])
        if tried * xl_C[c] > most:
            scale, most = tried, tried * xl_C[c]
    for _ in range(refinements):
        inverse = reciprocal(scale)
        sum_xl, sum_ll = level_sums(x_T, w_T, inverse, first, last, rises_R2, level_T)
        tried = sum_xl * reciprocal(sum_ll)
        if tried * sum_xl > most:
            scale, most = tried, tried * sum_xl
    return scale


@compiled
def search_symmetric_blocks(
    x_U1T: Array,
    importance_U1T: Array,
    kind: int,
    mean_factor: np.float32,
    first: np.float32,
    last: np.float32,
    rises_R2: Array,
    targets_C: Array,
    refinements: int,
    d_U: Array,
) -> None:
    """Scales of blocks without sub-blocks into `d_U`, in float32."""
    width = x_U1T.shape[2]
    w_1T = np.empty((1, width), np.float32)
    level_T = np.empty(width, np.float32)
    trial_4C = np.empty((4, len(targets_C)), np.float32)
    for u in range(len(x_U1T)):
        weigh(x_U1T[u], importance_U1T[u % len(importance_U1T)], kind, mean_factor, w_1T)
        d_U[u] = search(
            x_U1T[u, 0],
            w_1T[0],
            first,
            last,
            rises_R2,
            targets_C,
            refinements,
            trial_4C,
            level_T,
        )


@compiled
def fit_symmetric_blocks(
    x_UJT: Array,
    importance_UJT: Array,
    kind: int,
    mean_factor: np.float32,
    first: np.float32,
    last: np.float32,
    rises_R2: Array,
    targets_C: Array,
    refinements: int,
    integer_low: np.float32,
    integer_high: np.float32,
    reach_C: Array,
    passes: int,
    d_U: Array,
    integer_UJ: Array,
) -> None:
    """Stored d into `d_U`, integer scales into `integer_UJ`."""
    n_blocks, n_sub_blocks, width = x_UJT.shape
    w_JT = np.empty((n_sub_blocks, width), np.float32)
    level_T = np.empty(width, np.float32)
    trial_4C = np.empty((4, len(targets_C)), np.float32)
    xl_J, ll_J = np.empty(n_sub_blocks, np.float32), np.empty(n_sub_blocks, np.float32)
    wanted_J = np.empty(n_sub_blocks, np.float32)
    for u in range(n_blocks):
        x_JT, integer_J = x_UJT[u], integer_UJ[u]
        weigh(x_JT, importance_UJT[u % len(importance_UJT)], kind, mean_factor, w_JT)
        for j in range(n_sub_blocks):
            scale = search(
                x_JT[j],
                w_JT[j],
                first,
                last,
                rises_R2,
                targets_C,
                refinements,
                trial_4C,
                level_T,
            )
            xl_J[j], ll_J[j] = level_sums(
                x_JT[j], w_JT[j], reciprocal(scale), first, last, rises_R2, level_T
            )
            wanted_J[j] = xl_J[j] * reciprocal(ll_J[j])
        d = best_super_scale(wanted_J, ll_J, reach_C, integer_low, integer_high)
        for j in range(n_sub_blocks):
            integer_J[j] = clamped(np.rint(wanted_J[j] * reciprocal(d)), integer_low, integer_high)
        for _ in range(passes):
            along = curvature = ZERO
            for j in range(n_sub_blocks):
                xl_J[j], ll_J[j] = level_sums(
                    x_JT[j], w_JT[j], reciprocal(d * integer_J[j]), first, last, rises_R2, level_T
                )
                along += integer_J[j] * xl_J[j]
                curvature += integer_J[j] * integer_J[j] * ll_J[j]
            d = as_stored(along * reciprocal(curvature))
            for j in range(n_sub_blocks):
                wanted = xl_J[j] * reciprocal(ll_J[j] * d)
                integer_J[j] = clamped(np.rint(wanted), integer_low, integer_high)
        d_U[u] = d
