"""Intervals of the drop between two models on the same n problems, and of one accuracy.

With D_i in [-1, 1] the baseline's score less the artifact's on problem i, b = sum of the positive
D_i, c = sum of the negative ones' sizes, the drop is d = (b - c) / n.

* One answer a problem (D_i is -1, 0 or 1): Tango's score interval for paired proportions
  (Statistics in Medicine 17, 1998, 891-908): all d0 with |z(d0)| <= z_level, where

      z(d0) = (b - c - n d0) / sqrt(n (2 q + d0 (1 - d0)))

  and q is the maximum-likelihood estimate of P(artifact only) when the drop is d0: the larger root
  of 2n q^2 + B q + C = 0 with B = -b - c + (2n - b + c) d0 and C = -c d0 (1 - d0). It keeps a width
  with few or no discordant problems, where the Wald interval has none.
* Several answers: the wider, at each end, of two.
  Bonett and Price's Laplace-adjusted Wald interval (Statistics in Medicine 31, 2012, 479-488), here
  for differences of any size: one problem fully lost and one fully won are added,

      d = sum D / (n + 2),  var = (sum D^2 + 2) / (n + 2) - d^2,  d +- z sqrt(var / (n + 2))

  It alone passes a false drop in up to 10.6 % of the cases where the answers to a problem agree
  with each other, so that D is 0 or 1. Tango's interval on scaled counts holds there: with the
  unit u = sum D^2 / sum |D|, u times Tango's interval of b / u and c / u. Its variance is that of
  D, and for one answer a problem it is Tango's own.
* One accuracy: Wilson's score interval (1927); with several answers on the effective sample size
  n p (1 - p) / var(score), between n problems and all answers (Korn and Graubard, Survey
  Methodology 24, 1998, 193-201).

**Levels.** The gate may err at each end in at most 5 % of the cases. By enumeration of all
tables (n from 16 to 500, limits of 0.5 to 10 points, any discordance; `benchmarks/gate_rates.py`)
Tango's nominal 5 % is really up to 7.2 % above and 10.1 % below, where few discordant problems are
a skewed count. The levels here are those that hold.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

STATED_ERROR: Final = 0.05
"""What each end of an interval errs in at most: two-sided 90 %. A non-inferiority test looks at one
end, so that this is its conventional 5 %; 2.5 % would take a quarter more problems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """Nominal one-sided levels of the two ends, such that `STATED_ERROR` holds."""

    lower: float
    """A wrong end here fails a good artifact."""
    upper: float
    """A wrong end here passes a bad one."""


SINGLE: Final = Levels(lower=0.022, upper=0.038)
"""One answer a problem: worst cases enumerated 4.9 % below (234 problems, limit 2 points, 2.4 %
discordant) and 4.8 % above (21 problems, limit 2 points)."""
REPEATED: Final = Levels(lower=0.045, upper=0.03)
"""Several answers: worst cases simulated 4.5 % below (500 problems of 2 answers) and 4.7 % above
(200 of 16, where 5 % of the problems are lost whole and the others hardly differ)."""


def levels_for(samples: int) -> Levels:
    """The levels for that many answers a problem."""
    return SINGLE if samples == 1 else REPEATED


def tango_statistic(b: float, c: float, n: int, drop: float) -> float:
    """Score statistic of the hypothesis that the drop (a share) is `drop`."""
    variance = n * score_variance(b / n, c / n, drop)
    excess = b - c - n * drop
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def score_variance(lost: float, won: float, drop: float) -> float:
    """Variance of a difference under the hypothesis `drop`, from the shares lost and won."""
    linear = -lost - won + (2 - lost + won) * drop
    constant = -won * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear**2 - 8 * constant))
    # The two forms of the larger root; each cancels where the other does not.
    q = (root - linear) / 4 if linear <= 0 else -2 * constant / (root + linear)
    return 2 * q + drop * (1 - drop)


def tango_interval(b: float, c: float, n: int, levels: Levels) -> tuple[float, float]:
    """Ends of Tango's interval of the drop, as shares. `b` and `c` need not be whole."""
    observed = (b - c) / n

    def edge(outside: float, target: float) -> float:
        def excess(drop: float) -> float:
            return max(-1e9, min(1e9, tango_statistic(b, c, n, drop))) - target

        if excess(outside) * excess(observed) >= 0:
            return outside
        return float(optimize.brentq(excess, outside, observed, xtol=1e-12))

    return edge(-1.0, normal_z(levels.lower)), edge(1.0, -normal_z(levels.upper))


def bonett_price_interval(
    differences_N: NDArray[np.float64], levels: Levels
) -> tuple[float, float]:
    """Ends of the Laplace-adjusted Wald interval of the mean difference, within -1 and 1."""
    n = len(differences_N) + 2
    centre = float(differences_N.sum()) / n
    stderr = math.sqrt(((float((differences_N**2).sum()) + 2) / n - centre**2) / n)
    return max(-1.0, centre - normal_z(levels.lower) * stderr), min(
        1.0, centre + normal_z(levels.upper) * stderr
    )


def repeated_interval(differences_N: NDArray[np.float64], levels: Levels) -> tuple[float, float]:
    """Ends for several answers a problem: the wider of Bonett and Price's and scaled Tango's."""
    sizes_N = np.abs(differences_N)
    total = float(sizes_N.sum())
    unit = float((sizes_N**2).sum()) / total if total else 1.0
    b = float(np.maximum(differences_N, 0).sum()) / unit
    c = float(np.maximum(-differences_N, 0).sum()) / unit
    low, high = tango_interval(b, c, len(differences_N), levels)
    adjusted_low, adjusted_high = bonett_price_interval(differences_N, levels)
    return min(unit * low, adjusted_low), max(unit * high, adjusted_high)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Two-sided 90 % interval of one accuracy on n answers, as shares."""
    z = normal_z(STATED_ERROR)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def accuracy_interval(scores_N: NDArray[np.float64], samples: int) -> tuple[float, float]:
    """Two-sided 90 % interval of a mean score, clustered by problem."""
    n, share = len(scores_N), float(scores_N.mean())
    variance = float(scores_N.var(ddof=1)) if samples > 1 and n > 1 else 0.0
    effective = n * share * (1 - share) / variance if variance > 0 else n
    return wilson_interval(share, min(max(effective, n), n * samples))


def normal_z(level: float) -> float:
    """The normal quantile that is exceeded with probability `level`."""
    return -NormalDist().inv_cdf(level)
