"""Super-blocks of 256 weights: float16 super-scales over integer scales of the sub-blocks.

    symmetric: w = (d * s_j) * level          affine: w = (d * s_j) * q - dmin * m_j

Shape legend: O rows, K columns, S super-blocks per row, J sub-blocks of a super-block,
T weights of a sub-block, U super-blocks in hand.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grid import Lattice
from tightfit.quant.grids.ggml.base import GgmlGrid, per_weight
from tightfit.quant.grids.ggml.kernels.affine import fit_affine_blocks
from tightfit.quant.grids.ggml.kernels.symmetric import fit_symmetric_blocks
from tightfit.quant.grids.ggml.kernels.weigh import Array
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import Weighted
from tightfit.quant.grids.ggml.superblock import fit_affine, fit_symmetric, trial_reach
from tightfit.quant.grids.ggml.weighting import Weighting
from tightfit.quant.tensor import Params

SUPER_BLOCK = 256

SEARCH_REFINEMENTS = 1
"""Rounds of rounding and solving per sub-block before the integers are chosen; a second one gains
less than 0.2 % of the error."""

SUPER_PASSES = 3
"""Rounds of rounding and solving on the stored values; two more gain less than 0.2 %."""


class SymmetricSuperGrid(GgmlGrid):
    """A float16 scale per super-block and a signed integer scale per sub-block."""

    span = SUPER_BLOCK
    weighting: ClassVar[Weighting]
    targets: ClassVar[tuple[float, ...]]
    """Trials of the search: the level on which the value of largest magnitude comes to lie."""

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """Scale d * s per weight."""
        n_sub_blocks = self.span // self.sub_block
        d_OS, integer_OG = params["d"].to(torch.float32), params["scales"].to(torch.float32)
        assert integer_OG.shape == (n_rows, n_columns // self.sub_block)
        scale_OG = per_weight(d_OS, n_sub_blocks) * integer_OG
        return Lattice(scale_OK=per_weight(scale_OG, self.sub_block))

    def _fit_natural(self, x_UJT: Array, importance_UJT: Array | None) -> Mapping[str, Tensor]:
        d_U = np.empty(len(x_UJT), np.float32)
        integer_UJ = np.empty(x_UJT.shape[:2], np.float32)
        fit_symmetric_blocks(
            x_UJT,
            *self.weighting.kernel_options(importance_UJT),
            *self.levels.kernel_table(),
            np.array(self.targets, np.float32),
            SEARCH_REFINEMENTS,
            np.float32(-self.largest_scale),
            np.float32(self.largest_scale - 1),
            np.array(trial_reach(-self.largest_scale), np.float32),
            SUPER_PASSES,
            d_U,
            integer_UJ,
        )
        return {
            "d": torch.from_numpy(d_U).to(torch.float16),
            "scales": torch.from_numpy(integer_UJ).to(torch.int8),
        }

    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        w_TJU = self.weighting(x_TJU, importance_TJU)
        d_U, integer_JU = fit_symmetric(
            Weighted.of(x_TJU.flatten(1), w_TJU.flatten(1)),
            x_TJU.shape[1],
            self.levels,
            self.targets,
            SEARCH_REFINEMENTS,
            (-self.largest_scale, self.largest_scale - 1),
            SUPER_PASSES,
        )
        return {"d": d_U.to(torch.float16), "scales": integer_JU.to(torch.int8)}


class AffineSuperGrid(GgmlGrid):
    """Float16 scales d and dmin per super-block, unsigned scale and minimum per sub-block."""

    span = SUPER_BLOCK
    levels: ClassVar[UniformLevels]
    weighting: ClassVar[Weighting]
    trials: ClassVar[tuple[tuple[float, float], ...]]
    """Codes, before clamping, that the smallest and the largest value get in the search."""

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """Scale d * s and offset -(dmin * m) per weight."""
        n_sub_blocks = self.span // self.sub_block
        parts = {name: part.to(torch.float32) for name, part in params.items()}
        assert parts["scales"].shape == (n_rows, n_columns // self.sub_block)
        scale_OG = per_weight(parts["d"], n_sub_blocks) * parts["scales"]
        minimum_OG = per_weight(parts["dmin"], n_sub_blocks) * parts["mins"]
        return Lattice(
            scale_OK=per_weight(scale_OG, self.sub_block),
            offset_OK=per_weight(minimum_OG.neg_(), self.sub_block),
        )

    def _fit_natural(self, x_UJT: Array, importance_UJT: Array | None) -> Mapping[str, Tensor]:
        d_U, dmin_U = np.empty((2, len(x_UJT)), np.float32)
        integer_UJ, minimum_UJ = np.empty((2, *x_UJT.shape[:2]), np.float32)
        fit_affine_blocks(
            x_UJT,
            *self.weighting.kernel_options(importance_UJT),
            np.float32(self.levels.high),
            np.array(self.trials, np.float32),
            SEARCH_REFINEMENTS,
            np.float32(self.largest_scale),
            np.array(trial_reach(self.largest_scale), np.float32),
            SUPER_PASSES,
            d_U,
            dmin_U,
            integer_UJ,
            minimum_UJ,
        )
        return {
            "d": torch.from_numpy(d_U).to(torch.float16),
            "dmin": torch.from_numpy(dmin_U).to(torch.float16),
            "scales": torch.from_numpy(integer_UJ).to(torch.uint8),
            "mins": torch.from_numpy(minimum_UJ).to(torch.uint8),
        }

    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        w_TJU = self.weighting(x_TJU, importance_TJU)
        d_U, dmin_U, integer_JU, minimum_JU = fit_affine(
            Weighted.of(x_TJU.flatten(1), w_TJU.flatten(1)),
            x_TJU.shape[1],
            self.levels.high,
            self.trials,
            SEARCH_REFINEMENTS,
            self.largest_scale,
            SUPER_PASSES,
        )
        return {
            "d": d_U.to(torch.float16),
            "dmin": dmin_U.to(torch.float16),
            "scales": integer_JU.to(torch.uint8),
            "mins": minimum_JU.to(torch.uint8),
        }
