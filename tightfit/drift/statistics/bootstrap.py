"""Percentile bootstrap of a mean difference between two models on the same problems.

Problems are resampled with their answers (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, section 13.3). Resampling n problems is drawing how often each distinct difference appears, a
multinomial count, which is how it is done. It assumes nothing of the differences' shape, and has
width zero when none was seen: it is shown, and the gate does not decide on it.

Shape legend: N problems, V distinct differences, B resamples.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.statistics.intervals import STATED_ERROR

N_RESAMPLES: Final = 1999
"""The ends then rest on 100 resamples beyond each."""
TAILS: Final = (STATED_ERROR, 1 - STATED_ERROR)
"""Two-sided 90 %."""


def bootstrap_interval(differences_N: NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    """Two-sided 90 % percentile interval of the mean of differences (N,)."""
    n = len(differences_N)
    values_V, counts_V = np.unique(differences_N, return_counts=True)
    rng = np.random.default_rng(seed)
    resampled_BV = rng.multinomial(n, counts_V / n, size=N_RESAMPLES)
    low, high = np.quantile(resampled_BV @ values_V / n, TAILS)
    return float(low), float(high)
