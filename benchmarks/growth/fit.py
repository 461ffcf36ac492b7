"""How a cost grows with the size of the work."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cost that is `start` + `slope` * amount."""

    start: float
    slope: float
    worst: float
    """Largest distance of a cost from the line, as a part of that cost."""


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """The b of a cost a * amount^b, by least squares of logarithms; at least two amounts."""
    logs = ([math.log(each) for each in values] for values in (amounts, costs))
    return statistics.linear_regression(*logs).slope


def line(amounts: Sequence[float], costs: Sequence[float]) -> Line:
    """The line with the least squares of relative distances; at least two amounts."""
    x, y = np.asarray(amounts, dtype=float), np.asarray(costs, dtype=float)
    # Columns of unit size: weights are counted in billions.
    design = np.stack([np.ones_like(x), x / x.max()], axis=1) / y[:, None]
    (start, at_last), *_ = np.linalg.lstsq(design, np.ones_like(y))
    distances = design @ (start, at_last) - 1
    return Line(
        start=float(start), slope=float(at_last / x.max()), worst=float(np.abs(distances).max())
    )


def last_over_first(costs: Sequence[float]) -> float:
    """How often the first cost goes into the last."""
    return costs[-1] / costs[0]
