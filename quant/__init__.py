"""The numeric core: number grids, and the algorithms that put weights on them."""
