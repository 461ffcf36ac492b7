"""Statistics of accuracies measured on the same problems.

With n problems, b solved by the baseline only and c by the artifact only, the drop is
d = (b - c) / n.

* Interval of the drop: Tango's score interval for paired proportions (Statistics in Medicine 17,
  1998, 891-908): all d0 with |z(d0)| <= z_alpha, where

      z(d0) = (b - c - n d0) / sqrt(n (2 q + d0 (1 - d0)))

  and q is the maximum-likelihood estimate of P(artifact only) when the drop is d0: the larger root
  of 2n q^2 + B q + C = 0 with B = -b - c + (2n - b + c) d0 and C = -c d0 (1 - d0). It keeps its
  coverage with few or no discordant problems, where the Wald interval has width zero.
* McNemar's test, exact: b of b + c is binomial with probability 1/2 when nothing was lost.
* Wilson's score interval for a single accuracy (1927).
* Sample size of a non-inferiority decision: n = ((z_alpha + z_power) / (margin - d))^2 times the
  variance of a paired difference, discordant rate - d^2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats

DECISION_LEVEL = 0.05
"""One-sided error of a decision; the two-sided interval shown beside it is 90 %."""
DECISION_POWER = 0.8
"""Conventional chance that a measurement of the needed size decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedAccuracy:
    """Two accuracies on the same problems and the interval of the drop between them."""

    n: int
    baseline_correct: int
    artifact_correct: int
    only_baseline_correct: int
    only_artifact_correct: int
    baseline_interval: tuple[float, float]
    """Wilson, two-sided 95 %, as a share 0 to 1."""
    artifact_interval: tuple[float, float]
    drop_points: float
    """Baseline minus artifact in percentage points; positive is a loss."""
    drop_lower_points: float
    """Tango's interval, two-sided 90 %: each end is a one-sided 95 % bound."""
    drop_upper_points: float
    mcnemar_p: float
    """Exact two-sided p-value of `no difference`."""


def compare_paired(baseline: Sequence[bool], artifact: Sequence[bool]) -> PairedAccuracy:
    """Compare correctness on the same problems, in the same order."""
    assert len(baseline) == len(artifact) > 0
    pairs = list(zip(baseline, artifact, strict=True))
    b, c, n = pairs.count((True, False)), pairs.count((False, True)), len(pairs)
    lower, upper = tango_interval(b, c, n, level=DECISION_LEVEL)
    return PairedAccuracy(
        n=n,
        baseline_correct=sum(baseline),
        artifact_correct=sum(artifact),
        only_baseline_correct=b,
        only_artifact_correct=c,
        baseline_interval=wilson_interval(sum(baseline), n),
        artifact_interval=wilson_interval(sum(artifact), n),
        drop_points=100 * (b - c) / n,
        drop_lower_points=100 * lower,
        drop_upper_points=100 * upper,
        mcnemar_p=mcnemar_p(b, c),
    )


def tango_statistic(b: int, c: int, n: int, drop: float) -> float:
    """Score statistic of the hypothesis that the drop (a share) is `drop`."""
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear**2 - 8 * n * constant))
    # The two forms of the larger root; each cancels where the other does not.
    q = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (root + linear)
    variance = n * (2 * q + drop * (1 - drop))
    excess = b - c - n * drop
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def tango_interval(b: int, c: int, n: int, *, level: float) -> tuple[float, float]:
    """One-sided `level` bounds of the drop as shares: a two-sided 1 - 2 * level interval."""
    z = float(stats.norm.isf(level))
    observed = (b - c) / n

    def edge(outside: float, target: float) -> float:
        def excess(drop: float) -> float:
            return max(-1e9, min(1e9, tango_statistic(b, c, n, drop))) - target

        if excess(outside) * excess(observed) >= 0:
            return outside
        return float(optimize.brentq(excess, outside, observed, xtol=1e-12))

    return edge(-1.0, z), edge(1.0, -z)


def mcnemar_p(b: int, c: int) -> float:
    """Exact two-sided McNemar p-value of b against c discordant problems."""
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Two-sided 95 % interval of one accuracy, as shares."""
    interval = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def needed_problems(accuracy: PairedAccuracy, max_drop_points: float) -> int | None:
    """Problems after which a drop like the observed one is decided with 80 % power.

    None when the observed drop is the limit itself: no number of problems decides that.
    """
    margin, drop = max_drop_points / 100, accuracy.drop_points / 100
    distance = abs(margin - drop)
    if distance == 0:
        return None
    z_level = float(stats.norm.isf(DECISION_LEVEL))
    z_power = float(stats.norm.ppf(DECISION_POWER))
    discordant = accuracy.only_baseline_correct + accuracy.only_artifact_correct
    variance = discordant / accuracy.n - drop**2
    # Without a discordant problem the upper bound is z^2 / (n + z^2) (Tango's interval in closed
    # form), which must come below the margin.
    floor = z_level**2 * (1 - margin) / margin if margin > 0 else 0.0
    return max(
        accuracy.n + 1,
        math.ceil(floor),
        math.ceil(((z_level + z_power) / distance) ** 2 * variance),
    )


def mean_bounds(mean: float, stderr: float, n_samples: int) -> tuple[float, float]:
    """One-sided 95 % bounds of a mean over samples (Student, n - 1 degrees of freedom)."""
    reach = float(stats.t.isf(DECISION_LEVEL, n_samples - 1)) * stderr
    return mean - reach, mean + reach


def needed_samples(mean: float, stderr: float, n_samples: int, limit: float) -> int | None:
    """Samples after which a mean like the observed one is decided with 80 % power."""
    if mean == limit:
        return None
    z = float(stats.norm.isf(DECISION_LEVEL)) + float(stats.norm.ppf(DECISION_POWER))
    return max(n_samples + 1, math.ceil(n_samples * (z * stderr / (limit - mean)) ** 2))
