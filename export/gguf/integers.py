"""Integer grids as ggml's block types, exactly.

    symmetric    int4 -> Q4_0     int5 -> Q5_0      int8 -> Q8_0     (code c, zero point 2**(b-1))
    asymmetric   int4 -> Q5_0     and so on: levels c - z lie in -(2**b - 1) .. 2**b - 1, which the
                                  type with one more bit holds

All are w = d * (c - z) with a float16 d: the grid's per group of 32, 64 or 128 columns or per row,
ggml's per 32 columns and with a fixed zero point. So the levels stay, and a scale is repeated for
every block of its group; the file takes more room than the grid's own layout, and holds the same
numbers. `tightfit.targets.formats.ggml_type` says which type holds which grid.

Source: ggml-common.h, `block_q4_0` and its kin.

Shape legend: O output rows, I input columns, G column groups, S blocks of a row, B bytes of a row.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.grids.ggml.block_grids import BLOCK
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.targets.formats import ggml_type
from tightfit.targets.grids import INTEGERS

MIDDLE = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
"""Code of zero in each type."""


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
        grid=stored_as,
        shape=tensor.shape,
        codes_OI=_shifted_codes(tensor, MIDDLE[stored_as]),
        params={"d": scale_OS},
    )
    packed: NDArray[np.uint8] = grid.pack(blocks).numpy()
    return packed


def _shifted_codes(tensor: QuantizedTensor, middle: int) -> Tensor:
    """uint8 (O, I): codes of the same levels where the zero point is `middle`."""
    zero_OG = tensor.params.get("zero")
    if zero_OG is None:
        own = 1 << (INTEGERS[tensor.grid].bits - 1)
        return tensor.codes_OI if own == middle else tensor.codes_OI + (middle - own)
    zero_OI = zero_OG.repeat_interleave(tensor.shape[1] // zero_OG.shape[1], dim=1)
    # Through int16: a level may be negative.
    return (tensor.codes_OI.short() - zero_OI + middle).to(torch.uint8)
