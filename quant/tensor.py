"""A quantized matrix: codes, the parameters of its grid, and the grid's name.

Writers store these three exactly or refuse; nothing downstream ever rounds again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Params = Mapping[str, Tensor]
"""Stored parameters of a grid by name, in their stored precision (float16 scales, 6-bit integers).

Dimension 0 runs over rows (or row blocks), dimension 1 over column groups, so the parameters of
neighbouring column spans are joined by `torch.cat(..., dim=1)`.
"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """One weight matrix on a grid."""

    grid: str
    """Registered name of the grid, e.g. `Q4_K` or `int4-g128-sym`."""
    shape: tuple[int, int]
    """(O, I): output rows and input columns."""
    codes_OI: Tensor
    """uint8 (O, I): index of each weight's level, columns in their original order."""
    params: Params
    """The grid's stored parameters."""
    group_index_I: Tensor | None = None
    """int32 (I,): group of each column when act-order regrouped them (GPTQ's `g_idx`)."""
