"""How much each weight counts in a scale search, as ggml counts it.

With an importance matrix ggml weighs by importance * sqrt(v + x^2), v the mean square of the block
times 1 or 2: large weights count a little more than their importance says. Without one it weighs
by x^2, |x|, or |x| plus the root mean square of the sub-block, depending on the type.

Source: ggml-quants.c, the functions `quantize_row_*_impl` and `quantize_row_*_ref`. Deviation:
types with 32-weight blocks take v over the block, not over the whole row, so that a span's fit
does not depend on the columns around it.

Shape legend: T weights of a sub-block, J sub-blocks of a block, U blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grids.ggml.kernels import weigh
from tightfit.quant.grids.ggml.kernels.weigh import Array

SUB_BLOCK_FLOOR = 1e-4
"""Smallest search weight next to the largest of its sub-block: below it one massive activation
makes the 2x2 systems singular in float32, and the other weights would be left to chance."""
BLOCK_FLOOR = 1e-10
"""Smallest search weight next to the largest of its block: a sub-block that calibration never
reached still keeps its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """The search weights of one type."""

    mean_factor: float | None
    """v as a multiple of the block's mean square; None: the importance alone counts."""
    default: Callable[[Tensor], Tensor]
    """Weights of x (T, J, U) when there is no importance matrix."""

    def kernel_options(self, importance_UJT: Array | None) -> tuple[Array, int, np.float32]:
        """What `kernels.weigh.weigh` takes: an importance, the kind, the mean's factor."""
        factor = np.float32(-1 if self.mean_factor is None else self.mean_factor)
        if importance_UJT is None:
            return np.empty((1, 0, 0), np.float32), _KERNEL_KINDS[self.default], factor
        return importance_UJT, weigh.IMPORTANCE, factor

    def __call__(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Tensor:
        """Search weights (T, J, U), at most 1 and above zero in every block."""
        return _normalize_(self._raw(x_TJU, importance_TJU))

    def _raw(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Tensor:
        """A new tensor of unscaled weights."""
        if importance_TJU is None:
            return self.default(x_TJU)
        if self.mean_factor is None:
            return importance_TJU.clone()
        square_TJU = x_TJU.square()
        variance_U = square_TJU.mean(dim=(0, 1)).mul_(self.mean_factor)
        return square_TJU.add_(variance_U).sqrt_().mul_(importance_TJU)


def square(x_TJU: Tensor) -> Tensor:
    """x^2."""
    return x_TJU.square()


def absolute(x_TJU: Tensor) -> Tensor:
    """|x|."""
    return x_TJU.abs()


def shifted_absolute(x_TJU: Tensor) -> Tensor:
    """|x| plus the root mean square of the sub-block."""
    return x_TJU.abs().add_(x_TJU.square().mean(dim=0).sqrt_())


def _normalize_(weight_TJU: Tensor) -> Tensor:
    """Scale each block's largest weight to 1, in place; a block of zeros becomes uniform."""
    smallest_normal = torch.finfo(torch.float32).tiny
    largest_JU = weight_TJU.amax(dim=0)
    largest_U = largest_JU.amax(dim=0).clamp_(min=smallest_normal)
    floor_JU = (largest_JU / largest_U).mul_(SUB_BLOCK_FLOOR).clamp_(min=BLOCK_FLOOR)
    return torch.maximum(weight_TJU.div_(largest_U), floor_JU, out=weight_TJU)


_KERNEL_KINDS: Mapping[Callable[[Tensor], Tensor], int] = {
    square: weigh.SQUARE,
    absolute: weigh.ABSOLUTE,
    shifted_absolute: weigh.SHIFTED_ABSOLUTE,
}
