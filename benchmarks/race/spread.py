"""Figures of several rounds: the median, and between what they lie."""

import statistics
from collections.abc import Iterable


def median(values: Iterable[float]) -> float:
    """Of at least one."""
    return statistics.median(values)


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median (smallest to largest)."""
    seen = sorted(values)
    low, middle, high = (f"{each:.{digits}f}" for each in (seen[0], median(seen), seen[-1]))
    return middle if low == high else f"{middle} ({low} to {high})"
