"""How much more measuring would decide: sample sizes for 80 % power, from the observed values.

A drop d is decided against a limit m by n problems when

    n |m - d| >= z_level sqrt(n v_0 + a) + z_power sqrt(n v_1)

with v_1 the observed variance of a difference. One answer a problem: v_0 is its variance at the
limit (Tango's, `intervals.score_variance`) and a = 0; without a discordant problem that is
n = z_level^2 (1 - m) / m. Several answers: the larger of two sizes, as the interval is the wider of
two. Bonett and Price's has v_0 = v_1 and a = 2, the two added problems; scaled Tango's has the
variance at the limit in units of u = sqrt(v / share of problems that differ), and a = 0.
"""

import math
from typing import Final

from scipy import optimize

from tightfit.drift.statistics.intervals import (
    STATED_ERROR,
    Levels,
    levels_for,
    normal_z,
    score_variance,
)
from tightfit.drift.statistics.mean import LOGNORMAL_LEVEL, MIN_TRACES
from tightfit.drift.statistics.paired import PairedAccuracy

DECISION_POWER: Final = 0.8
"""Conventional chance that a measurement of the needed size decides."""
MOST: Final = 10**9
"""Beyond this the answer is that no number decides."""
INTERVAL_WIDTHS: Final = 2 * normal_z(STATED_ERROR)
"""Standard errors in the bootstrap interval."""


def needed_problems(accuracy: PairedAccuracy, max_drop_points: float) -> int | None:
    """Problems after which a drop like the observed one is decided with 80 % power.

    None when the observed drop is the limit itself: no number of problems decides that.
    """
    limit, drop, n = max_drop_points / 100, accuracy.drop_points / 100, accuracy.n
    lost, won = accuracy.baseline_only / n, accuracy.artifact_only / n
    levels = levels_for(accuracy.samples)
    if accuracy.samples == 1 or lost + won == 0:
        needed = single_size(lost, won, limit, levels)
    else:
        low, high = accuracy.bootstrap_interval_points
        variance = n * ((high - low) / 100 / INTERVAL_WIDTHS) ** 2
        unit = math.sqrt((variance + drop**2) / (lost + won))
        at_limit = unit**2 * score_variance(lost, won, min(limit / unit, 1.0))
        sizes = (
            _size(drop, limit, levels, at_limit=variance, observed=variance, added=2),
            _size(drop, limit, levels, at_limit=at_limit, observed=variance, added=0),
        )
        needed = None if None in sizes else max(size for size in sizes if size is not None)
    return None if needed is None else max(n + 1, needed)


def single_size(lost: float, won: float, limit: float, levels: Levels) -> int | None:
    """Problems with one answer each that decide, from the shares lost and won and the limit."""
    drop = lost - won
    return _size(
        drop,
        limit,
        levels,
        at_limit=score_variance(lost, won, limit),
        observed=lost + won - drop**2,
        added=0,
    )


def _size(
    drop: float, limit: float, levels: Levels, *, at_limit: float, observed: float, added: int
) -> int | None:
    """Smallest n of the formula above; None beyond `MOST`."""
    distance = abs(limit - drop)
    if distance == 0:
        return None
    z_level = normal_z(levels.upper if drop < limit else levels.lower)
    z_power = normal_z(1 - DECISION_POWER)

    def missing(size: float) -> float:
        reach = z_level * math.sqrt(size * at_limit + added)
        return reach + z_power * math.sqrt(size * max(observed, 0.0)) - size * distance

    if missing(MOST) > 0:
        return None
    if missing(1) <= 0:
        return 1
    return math.ceil(float(optimize.brentq(missing, 1, MOST, xtol=1e-3)))


def needed_traces(
    mean: float, stderr: float, interval: tuple[float, float], n: int, limit: float
) -> int | None:
    """Traces after which a mean like the observed one is decided, roughly with 80 % power.

    With many traces the reach of the interval falls as 1 / sqrt(n), with few skewed ones about as
    1 / n: the larger of the two estimates. None when the mean is the limit itself.
    """
    distance = abs(limit - mean)
    reach = interval[1] - mean if mean < limit else mean - interval[0]
    z = normal_z(LOGNORMAL_LEVEL) + normal_z(1 - DECISION_POWER)
    if distance * MOST <= n * max(reach, z * stderr):
        return None
    normal = n * (z * stderr / distance) ** 2
    return max(n + 1, MIN_TRACES, math.ceil(normal), math.ceil(n * reach / distance))
