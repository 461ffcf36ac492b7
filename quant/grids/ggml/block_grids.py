"""Blocks of 32 weights with float16 parameters: one scale, or a scale and a minimum.

    symmetric: w = d * level          affine: w = d * q + m

Shape legend: O rows, K columns, S blocks per row, T weights of a block, J = 1, U blocks in hand.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grid import Lattice
from tightfit.quant.grids.ggml.base import GgmlGrid, per_weight
from tightfit.quant.grids.ggml.kernels.affine import search_affine_blocks
from tightfit.quant.grids.ggml.kernels.symmetric import search_symmetric_blocks
from tightfit.quant.grids.ggml.kernels.weigh import Array
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import (
    Weighted,
    search_affine,
    search_symmetric,
    signed_extreme,
)
from tightfit.quant.grids.ggml.superblock import as_stored
from tightfit.quant.grids.ggml.weighting import Weighting
from tightfit.quant.tensor import Params

BLOCK = 32

SEARCH_REFINEMENTS = 3
"""Rounds of rounding and solving after the trials; a fourth gains less than 0.1 % of the error."""


class SymmetricBlockGrid(GgmlGrid):
    """One float16 scale per 32 weights."""

    span = BLOCK
    sub_block = BLOCK
    weighting: ClassVar[Weighting]
    targets: ClassVar[tuple[float, ...]]
    """Trials of the search: the level on which the value of largest magnitude comes to lie."""
    reference_level: ClassVar[int | None] = None
    """Where ggml's reference quantizer puts that value; None: it searches without importance."""

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """Scale d per weight."""
        d_OS = params["d"].to(torch.float32)
        assert d_OS.shape == (n_rows, n_columns // self.span)
        return Lattice(scale_OK=per_weight(d_OS, BLOCK))

    def _fit_natural(self, x_UJT: Array, importance_UJT: Array | None) -> Mapping[str, Tensor]:
        if importance_UJT is None and self.reference_level is not None:
            x_TJU = torch.from_numpy(x_UJT).permute(2, 1, 0)
            return self._fit_blocks(x_TJU, None)
        d_U = np.empty(len(x_UJT), np.float32)
        search_symmetric_blocks(
            x_UJT,
            *self.weighting.kernel_options(importance_UJT),
            *self.levels.kernel_table(),
            np.array(self.targets, np.float32),
            SEARCH_REFINEMENTS,
            d_U,
        )
        return {"d": torch.from_numpy(d_U).to(torch.float16)}

    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        if importance_TJU is None and self.reference_level is not None:
            d_U = signed_extreme(x_TJU[:, 0]) / self.reference_level
        else:
            data = Weighted.of(x_TJU[:, 0], self.weighting(x_TJU, importance_TJU)[:, 0])
            d_U = search_symmetric(data, self.levels, self.targets, SEARCH_REFINEMENTS)
        return {"d": d_U.to(torch.float16)}


class AffineBlockGrid(GgmlGrid):
    """A float16 scale and a float16 minimum per 32 weights."""

    span = BLOCK
    sub_block = BLOCK
    levels: ClassVar[UniformLevels]
    weighting: ClassVar[Weighting]
    trials: ClassVar[tuple[tuple[float, float], ...]]
    """Codes, before clamping, that the smallest and the largest value get in the search."""

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """Scale d and offset m per weight."""
        d_OS, m_OS = params["d"].to(torch.float32), params["m"].to(torch.float32)
        assert d_OS.shape == m_OS.shape == (n_rows, n_columns // self.span)
        return Lattice(scale_OK=per_weight(d_OS, BLOCK), offset_OK=per_weight(m_OS, BLOCK))

    def _fit_natural(self, x_UJT: Array, importance_UJT: Array | None) -> Mapping[str, Tensor]:
        if importance_UJT is None:
            return self._fit_blocks(torch.from_numpy(x_UJT).permute(2, 1, 0), None)
        d_U, m_U = np.empty((2, len(x_UJT)), np.float32)
        search_affine_blocks(
            x_UJT,
            *self.weighting.kernel_options(importance_UJT),
            np.float32(self.levels.high),
            np.array(self.trials, np.float32),
            SEARCH_REFINEMENTS,
            d_U,
            m_U,
        )
        return {
            "d": as_stored(torch.from_numpy(d_U)).to(torch.float16),
            "m": torch.from_numpy(m_U).to(torch.float16),
        }

    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        q_max = self.levels.high
        if importance_TJU is None:
            m_U = x_TJU[:, 0].amin(dim=0)
            d_U = (x_TJU[:, 0].amax(dim=0) - m_U) / q_max
        else:
            # Taken from the smallest value: in a block far from zero the differences of large
            # sums would hide the error.
            low_U = x_TJU[:, 0].amin(dim=0)
            w_TU = self.weighting(x_TJU, importance_TJU)[:, 0]
            data = Weighted.of(x_TJU[:, 0] - low_U, w_TU)
            d_U, above_low_U = search_affine(
                data, q_max, self.trials, SEARCH_REFINEMENTS, any_minimum=True
            )
            m_U = low_U + above_low_U
        return {"d": as_stored(d_U).to(torch.float16), "m": m_U.to(torch.float16)}
