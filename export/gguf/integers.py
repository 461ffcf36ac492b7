"""Symmetric integer grids as ggml's block types, exactly.

    int4-*-sym -> Q4_0      int5-*-sym -> Q5_0      int8-*-sym -> Q8_0

Both are w = d * (code - 2**(bits-1)) with a float16 d: the grid's per group of 32, 64 or 128
columns or per row, ggml's per 32 columns. So the codes stay, and a scale is repeated for every
block of its group; the file takes more room than the grid's own layout, and holds the same numbers.

Source: ggml-common.h, `block_q4_0` and its kin.

Shape legend: O output rows, I input columns, G column groups, S blocks of a row, B bytes of a row.
"""

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import QuantizationError
from tightfit.quant.grids.ggml.block_grids import BLOCK
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.targets.formats import ggml_type


def to_ggml_rows(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """uint8 (O, B): the rows of a matrix on an integer grid that GGUF holds (`ggml_type`).

    Raises `QuantizationError` for a width that blocks of 32 do not divide, and for act-order.
    """
    stored_as = ggml_type(tensor.grid).name
    if tensor.group_index_I is not None:
        raise QuantizationError(
            f"a {tensor.grid} matrix with act-order cannot be stored in GGUF",
            allowed="groups of neighbouring columns: GGUF has no place for a permutation",
            hint="quantize again without act-order (static groups keep most of its accuracy), or "
            "export to another format",
        )
    grid = get_grid(stored_as)
    grid.check_shape(tensor.shape)
    n_blocks = tensor.shape[1] // BLOCK
    scale_OG = tensor.params["scale"]
    scale_OS = scale_OG.repeat_interleave(n_blocks // scale_OG.shape[1], dim=1)
    blocks = QuantizedTensor(
        grid=stored_as, shape=tensor.shape, codes_OI=tensor.codes_OI, params={"d": scale_OS}
    )
    packed: NDArray[np.uint8] = grid.pack(blocks).numpy()
    return packed
