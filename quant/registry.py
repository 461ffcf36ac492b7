"""All grids by name."""

from tightfit.errors import UsageError
from tightfit.quant.grid import Grid
from tightfit.quant.grids.float8 import FLOAT8_GRIDS
from tightfit.quant.grids.ggml import GGML_GRIDS
from tightfit.quant.grids.integer import INTEGER_GRIDS


def _by_name(*families: tuple[Grid, ...]) -> dict[str, Grid]:
    grids: dict[str, Grid] = {}
    for family in families:
        for grid in family:
            if grid.name in grids:
                raise ValueError(f"two grids are named {grid.name}")
            grids[grid.name] = grid
    return grids


GRIDS = _by_name(INTEGER_GRIDS, GGML_GRIDS, FLOAT8_GRIDS)


def get_grid(name: str) -> Grid:
    """The grid of that name; raises `UsageError` when there is none."""
    if name not in GRIDS:
        raise UsageError(
            f"there is no grid named {name!r}",
            allowed="grids: " + ", ".join(GRIDS),
            hint="a job of another version of tightfit? Export again with --overwrite",
        )
    return GRIDS[name]
