"""Search weights of one block, as `tightfit.quant.grids.ggml.weighting` defines them.

Shape legend: J sub-blocks of a block, T weights of a sub-block.
"""

import numpy as np
from numpy.typing import NDArray

from tightfit.quant.grids.ggml.kernels.compiled import ZERO, inlined

SQUARE, ABSOLUTE, SHIFTED_ABSOLUTE, IMPORTANCE = range(4)
"""Kinds: x^2, |x|, |x| + rms of the sub-block, and importance * sqrt(v + x^2)."""
SUB_BLOCK_FLOOR, BLOCK_FLOOR = np.float32(1e-4), np.float32(1e-10)
TINY = np.float32(np.finfo(np.float32).tiny)
Array = NDArray[np.float32]


@inlined
def weigh(
    x_JT: Array, importance_JT: Array, kind: int, mean_factor: np.float32, w_JT: Array
) -> None:
    """Fill `w_JT`; a negative `mean_factor` lets the importance count alone.

    Of the other kinds `importance_JT` is empty.
    """
    n_sub_blocks, width = x_JT.shape
    variance = ZERO
    if kind == IMPORTANCE and mean_factor > ZERO:
        for j in range(n_sub_blocks):
            for t in range(width):
                variance += x_JT[j, t] * x_JT[j, t]
        variance *= mean_factor / np.float32(n_sub_blocks * width)
    largest = TINY
    for j in range(n_sub_blocks):
        x_T, w_T = x_JT[j], w_JT[j]
        if kind == IMPORTANCE and mean_factor > ZERO:
            for t in range(width):
                w_T[t] = np.sqrt(x_T[t] * x_T[t] + variance) * importance_JT[j, t]
        elif kind == IMPORTANCE:
            for t in range(width):
                w_T[t] = importance_JT[j, t]
        elif kind == SQUARE:
            for t in range(width):
                w_T[t] = x_T[t] * x_T[t]
        else:
            shift = ZERO
            if kind == SHIFTED_ABSOLUTE:
                for t in range(width):
                    shift += x_T[t] * x_T[t]
                shift = np.sqrt(shift / np.float32(width))
            for t in range(width):
                w_T[t] = abs(x_T[t]) + shift
        for t in range(width):
            largest = max(largest, w_T[t])
    for j in range(n_sub_blocks):
        w_T = w_JT[j]
        own = ZERO
        for t in range(width):
            own = max(own, w_T[t])
        floor = max(own / largest * SUB_BLOCK_FLOOR, BLOCK_FLOOR)
        for t in range(width):
            w_T[t] = max(w_T[t] / largest, floor)
