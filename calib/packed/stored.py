"""A quantized matrix as a checkpoint holds it, whatever its format.

    w[o, i] = float32(scale[o, g]) * (code[o, i] - zero[o, g]),    0 <= code, zero < 2**bits

where g is the group of column i: i // group_size, unless an act-order says otherwise.

Shape legend: O output rows, I input columns, G groups of columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredInteger:
    """Codes and parameters of a matrix, none of them changed."""

    bits: int
    group_size: int
    """Columns that share a scale; 0: all columns of a row."""
    symmetric: bool
    codes_OI: Tensor
    """uint8 (O, I)."""
    scale_OG: Tensor
    """float16, bfloat16 or float32 (O, G), as stored."""
    zero_OG: Tensor
    """uint8 (O, G); 2**(bits - 1) everywhere when symmetric."""
    group_index_I: Tensor | None
    """int32 (I): group of every column under an act-order; None: groups follow one another."""

    def dequantize(self) -> Tensor:
        """float32 (O, I)."""
        scale_OG, zero_OG = self.scale_OG.to(torch.float32), self.zero_OG.to(torch.float32)
        w_OI = self.codes_OI.to(torch.float32)
        if self.group_index_I is not None:
            return w_OI.sub_(zero_OG[:, self.group_index_I]).mul_(scale_OG[:, self.group_index_I])
        n_rows, n_groups = scale_OG.shape
        w_OGK = w_OI.view(n_rows, n_groups, -1)
        w_OGK.sub_(zero_OG[:, :, None]).mul_(scale_OG[:, :, None])
        return w_OI
