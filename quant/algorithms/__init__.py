"""Algorithms that put weights on any grid, one per file."""
