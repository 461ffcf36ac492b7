"""Number grids, one family per folder or file."""
