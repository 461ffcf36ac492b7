"""The compiled rounding of a block against the same steps in torch."""

import pytest
import torch

from tightfit.quant.algorithms.block_kernel import round_block
from tightfit.quant.algorithms.column_loop import BLOCK_COLUMNS, _visit_block
from tightfit.quant.grid import Grid, Lattice
from tightfit.quant.registry import GRIDS

STEPPED = [grid for grid in GRIDS.values() if grid.steps is not None and "channel" not in grid.name]
N_MATRICES, N_ROWS = 2, 150
"""More rows than a tile has."""


def test_codebooks_and_floats_have_no_steps() -> None:
    others = {grid.name for grid in GRIDS.values() if grid.steps is None}
    assert others == {name for name in GRIDS if name.startswith(("IQ4", "fp8"))}


@pytest.mark.parametrize("grid", STEPPED, ids=lambda grid: grid.name)
def test_the_kernel_takes_the_same_steps(grid: Grid) -> None:
    generator = torch.Generator().manual_seed(0)
    n = N_MATRICES * N_ROWS
    w_NK = torch.randn(n, max(grid.span, BLOCK_COLUMNS), generator=generator)
    w_NK[0] = 0
    w_NK[1] *= 100
    params = grid.fit(w_NK)
    lattice = grid.lattice(params, *w_NK.shape).columns(torch.arange(BLOCK_COLUMNS))
    upper_BBE = torch.randn(BLOCK_COLUMNS, BLOCK_COLUMNS, N_MATRICES, generator=generator)
    upper_BBE = 0.1 * upper_BBE + torch.eye(BLOCK_COLUMNS)[:, :, None]
    # Columns that earlier blocks have moved, beyond the range of the fit too.
    moved_BN = (1.5 * w_NK[:, :BLOCK_COLUMNS]).T
    w_BEO = moved_BN.reshape(BLOCK_COLUMNS, N_MATRICES, N_ROWS).contiguous()

    expected_w_BEO = w_BEO.clone()
    expected_codes_BEO, expected_errors_BEO = _visit_block(
        expected_w_BEO, upper_BBE, _expanded(lattice, n), grid
    )
    assert grid.steps is not None
    codes_BEO, errors_BEO = round_block(w_BEO, upper_BBE, _expanded(lattice, n), grid.steps)

    assert codes_BEO.dtype == torch.uint8
    # Sums are rounded otherwise by fused operations: a tie may fall the other way, and its row
    # goes on from there.
    same_EO = (codes_BEO == expected_codes_BEO).all(dim=0)
    assert same_EO.float().mean() > 0.99
    for ours, theirs in ((errors_BEO, expected_errors_BEO), (w_BEO, expected_w_BEO)):
        torch.testing.assert_close(ours[:, same_EO], theirs[:, same_EO], rtol=1e-4, atol=1e-4)
    assert codes_BEO.unique().numel() > 2


def _expanded(lattice: Lattice, n_rows: int) -> Lattice:
    def expand(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.expand(n_rows, -1)

    return Lattice(
        scale_OK=lattice.scale_OK.expand(n_rows, -1),
        zero_OK=expand(lattice.zero_OK),
        offset_OK=expand(lattice.offset_OK),
    )
