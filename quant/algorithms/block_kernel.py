"""The column loop inside a block, on the CPU: a tile of rows stays in the cache for all columns.

The steps are those of `column_loop._visit_block`, in the same order, for grids whose levels are
consecutive integers: in torch every one of them is an operation on a column, and for narrow
matrices their start takes longer than they do.

Shape legend: B columns of a block, E matrices, O output rows of each.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grid import Lattice, Steps
from tightfit.quant.grids.ggml.kernels.compiled import ZERO, clamped, exact

Array = np.ndarray[Any, Any]
_TILE_ROWS = 128
"""Of a block's 32 columns: weights, scales and errors together take 48 KB."""


def round_block(
    w_BEO: Tensor, upper_BBE: Tensor, lattice: Lattice, steps: Steps
) -> tuple[Tensor, Tensor]:
    """Codes uint8 (B, E, O) and errors e (B, E, O); overwrites the weights."""

    def array(part_NB: Tensor) -> Array:
        columns: Array = part_NB.T.contiguous().view_as(w_BEO).numpy()
        return columns

    zero_NB = lattice.zero_OK if steps.zero is None else None
    codes_BEO = torch.empty_like(w_BEO, dtype=torch.uint8)
    errors_BEO = torch.empty_like(w_BEO)
    _round_block(
        w_BEO.numpy(),
        upper_BBE.contiguous().numpy(),
        array(lattice.scale_OK),
        None if zero_NB is None else array(zero_NB),
        None if lattice.offset_OK is None else array(lattice.offset_OK),
        np.float32(steps.zero or 0),
        np.float32(steps.top_code),
        codes_BEO.numpy(),
        errors_BEO.numpy(),
    )
    return codes_BEO, errors_BEO


@exact
def _round_block(
    w_BEO: Array,
    upper_BBE: Array,
    scale_BEO: Array,
    zero_BEO: Array | None,
    offset_BEO: Array | None,
    zero: np.float32,
    top_code: np.float32,
    codes_BEO: Array,
    errors_BEO: Array,
) -> None:
    """`zero` serves where there is no `zero_BEO`."""
    n_columns, n_matrices, n_rows = w_BEO.shape
    for e in range(n_matrices):
        for first in range(0, n_rows, _TILE_ROWS):
            end = min(first + _TILE_ROWS, n_rows)
            for j in range(n_columns):
                diagonal = upper_BBE[j, j, e]
                for o in range(first, end):
                    w, scale = w_BEO[j, e, o], scale_BEO[j, e, o]
                    shifted = w if offset_BEO is None else w - offset_BEO[j, e, o]
                    step = np.rint(shifted / scale) if scale != ZERO else ZERO
                    origin = zero if zero_BEO is None else zero_BEO[j, e, o]
                    code = clamped(step + origin, ZERO, top_code)
                    value = (code - origin) * scale
                    if offset_BEO is not None:
                        value += offset_BEO[j, e, o]
                    codes_BEO[j, e, o] = np.uint8(code)
                    errors_BEO[j, e, o] = (w - value) / diagonal
                for k in range(j + 1, n_columns):
                    coupling = upper_BBE[j, k, e]
                    for o in range(first, end):
                        w_BEO[k, e, o] -= coupling * errors_BEO[j, e, o]
