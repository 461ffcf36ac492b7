"""Anytime-valid test of the mean drop: stop as soon as the evidence suffices.

Problems come in random order; D_i in [-1, 1] is the baseline's score less the artifact's. A fair
bet of share l on `the mean is below m` multiplies its stake by 1 + l (m - D_i); if the mean is m or
more, no such bet grows on average, so the weighted mean of several

    E_n = sum_l w_l prod_i (1 + l (m - D_i)),   0 < l < 1 / (1 - m)

is a nonnegative supermartingale that starts at 1. By Ville's inequality it ever reaches 1 / alpha
with probability alpha at most, however often one looks (Waudby-Smith and Ramdas, Estimating means
of bounded random variables by betting, JRSS B 86, 2024, 1-27, sections 3 and 4). Reaching it
passes; the mirrored bets against `the mean is m or less` fail.

The stakes are fixed shares of the largest allowed. Large ones decide by 191 problems when nothing
is lost (limit 2 points), small ones win where many problems go either way. The problems are taken
as independent draws, as the fixed-size gate takes them.

Shape legend: P side (0 pass, 1 fail), G stakes.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.statistics.intervals import STATED_ERROR, normal_z
from tightfit.drift.statistics.outcome import Outcome

STAKES_G: Final = np.array([0.95, 0.6, 0.35, 0.2, 0.1, 0.05])
"""Shares of the largest allowed bet. The best one is about (m - d) / var(D): 1 without a discordant
problem, 0.2 where one problem in ten differs."""
WEIGHTS_G: Final = np.array([0.45, 0.15, 0.1, 0.1, 0.1, 0.1])
"""Nearly half on the largest, which must decide alone when nothing is lost."""
ALPHA: Final = STATED_ERROR
"""Chance of each wrong decision, over all looks together: as for a fixed size."""
POWER_Z: Final = normal_z(0.2)
"""For 80 % power."""


def log_growth(differences: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Logarithm by which each stake grows: differences (...) give (..., P, G). `margin` a share."""
    gap = margin - np.asarray(differences, np.float64)[..., None]
    passing = np.log1p(STAKES_G / (1 - margin) * gap)
    failing = np.log1p(STAKES_G / (1 + margin) * -gap)
    return np.stack([passing, failing], axis=-2)


def log_evidence(log_stakes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the weighted mean of stakes given as logarithms, (..., G) to (...)."""
    largest = log_stakes.max(axis=-1)
    log_mean: NDArray[np.float64] = largest + np.log(
        np.exp(log_stakes - largest[..., None]) @ WEIGHTS_G
    )
    return log_mean


class SequentialTest:
    """Evidence that grows problem by problem, for and against `the drop is within the margin`."""

    def __init__(self, margin_points: float, alpha: float = ALPHA) -> None:
        assert 0 <= margin_points < 100
        self._margin = margin_points / 100
        self._log_stakes_PG = np.zeros((2, len(STAKES_G)))
        self._squares_PG = np.zeros_like(self._log_stakes_PG)
        self.threshold = 1 / alpha
        """Evidence that decides."""
        self.looked_at = 0
        """Problems so far."""
        self.decided: Outcome | None = None
        """Once set, the test is over: later problems are not looked at, the evidence stands."""

    def update(self, difference: float) -> None:
        """Take one problem: the baseline's score less the artifact's, -1 to 1."""
        assert -1 <= difference <= 1
        if self.decided is not None:
            return
        growth_PG = log_growth(np.array(difference), self._margin)
        self._log_stakes_PG += growth_PG
        self._squares_PG += growth_PG**2
        self.looked_at += 1
        if self.pass_evidence >= self.threshold:
            self.decided = Outcome.PASS
        elif self.fail_evidence >= self.threshold:
            self.decided = Outcome.FAIL

    @property
    def pass_evidence(self) -> float:
        """E-value against `the drop is the margin or more`."""
        return self._evidence(0)

    @property
    def fail_evidence(self) -> float:
        """E-value against `the drop is the margin or less`."""
        return self._evidence(1)

    @property
    def needed(self) -> int | None:
        """Problems by which it decides with 80 % power if they go on like those seen.

        For the stake and side that decide first. None when no stake grows, or before a problem.
        """
        n = self.looked_at
        if n == 0:
            return None
        mean_PG = self._log_stakes_PG / n
        deviation_PG = np.sqrt(np.maximum(self._squares_PG / n - mean_PG**2, 0.0))
        goal_G = math.log(self.threshold) - np.log(WEIGHTS_G)
        growing_PG = mean_PG > 0
        # Smallest size with size * mean - z * sqrt(size) * deviation = goal, for each stake.
        spread_PG = POWER_Z * deviation_PG[growing_PG]
        goals = np.broadcast_to(goal_G, mean_PG.shape)[growing_PG]
        grows = mean_PG[growing_PG]
        roots = (spread_PG + np.sqrt(spread_PG**2 + 4 * grows * goals)) / (2 * grows)
        return max(n + 1, math.ceil((roots**2).min())) if roots.size else None

    def _evidence(self, side: int) -> float:
        # A float's largest logarithm is 709; evidence beyond it decides as well as at it.
        return math.exp(min(700.0, float(log_evidence(self._log_stakes_PG[side]))))
