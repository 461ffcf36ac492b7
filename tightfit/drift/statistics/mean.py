"""Interval of a mean over the tokens of N traces, of something positive and right-skewed.

With S_i the sum over trace i (of KL, say) and T_i its tokens, the mean is the ratio estimator
m = sum S / sum T. A trace is the unit: its tokens are not independent. The gate decides on this
interval, so each end may be wrong in at most 5 % of the cases, also for few traces whose means
differ by an order of magnitude, where Student's t errs above in 6 to 48 %.

* Below: bootstrap-t (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5).
  Traces are resampled; t* = (m* - m) / se(m*), se the ratio estimator's (Cochran, Sampling
  Techniques, 1977, section 6.4); the end is m - q se(m) with q the upper quantile of t*.
* Above: the larger of the bootstrap-t end and the end for lognormal traces, since no resampling
  knows the tail that a small sample did not show. With y = log(S / T) and x = log T jointly
  normal, log E[S] / E[T] = mu_y + var_y / 2 + cov_xy, whose generalized pivotal quantity is
  simulated (Krishnamoorthy and Mathew, Journal of Statistical Planning and Inference 115, 2003,
  103-121; here for two variables, by the Cholesky factor of their covariance). Small means say
  nothing of the upper tail but swell var_y: y is raised to the mirror image of its largest value
  about its median.

The levels are stricter than 5 % where simulation showed the nominal one not to hold
(`tests/drift/statistics/test_mean.py`, `docs/drift.md`).

Shape legend: N traces, B resamples, D draws, R data sets at once.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_TRACES: Final = 8
"""Fewest traces whose interval a decision may rest on."""
LOWER_LEVEL: Final = 0.02
"""Level of the bootstrap-t end below: at 5 % it erred in up to 8.9 %, here in up to 4.7 % (8 traces
of nearly the same mean)."""
UPPER_LEVEL: Final = 0.05
"""Level of the bootstrap-t end above."""
LOGNORMAL_LEVEL: Final = 0.02
"""Level of the lognormal end: by the raised values it erred at 5 % in up to 8.6 %, at 2.5 % in up
to 5.2 %, here in up to 4.4 % (8 traces, sigma 1.5)."""
N_RESAMPLES: Final = 1999
"""Quantiles of t* at 2 % then rest on 40 values beyond them."""
N_DRAWS: Final = 4000
"""The same for the lognormal end: 80 draws lie beyond it."""
MAX_T: Final = 100.0
"""Resamples of one value have no error of their own; their t* counts as this."""
MAX_LOG_RATIO: Final = 50.0
"""The end above is at most exp of this times the mean: finite, and as good as unknown."""

Floats = NDArray[np.float64]


def mean_interval(sums_N: Floats, counts_N: Floats, *, seed: int) -> tuple[float, float] | None:
    """Two-sided 90 % interval of sum(sums) / sum(counts), clustered by trace.

    `sums_N` are totals over each trace, not negative; `counts_N` its tokens, positive. None for
    fewer than two traces. Below `MIN_TRACES` it is only indicative.
    """
    if len(sums_N) < 2:
        return None
    lower_R, upper_R = mean_intervals(sums_N[None], counts_N[None], seed=seed)
    return float(lower_R[0]), float(upper_R[0])


def mean_intervals(sums_RN: Floats, counts_RN: Floats, *, seed: int) -> tuple[Floats, Floats]:
    """`mean_interval` of many data sets with equally many traces: both ends, each (R,)."""
    assert sums_RN.shape == counts_RN.shape
    assert sums_RN.shape[1] >= 2
    assert (sums_RN >= 0).all()
    assert (counts_RN > 0).all()
    mean_R = sums_RN.sum(axis=1) / counts_RN.sum(axis=1)
    stderr_R = _stderr(sums_RN - mean_R[:, None] * counts_RN, counts_RN)
    if sums_RN.shape[1] < MIN_TRACES:
        return _student_on_logs(mean_R, stderr_R, sums_RN.shape[1])
    rng = np.random.default_rng(seed)
    t_BR = _bootstrap_t(sums_RN, counts_RN, mean_R, rng)
    below_R, above_R = np.quantile(t_BR, (1 - LOWER_LEVEL, UPPER_LEVEL), axis=0)
    upper_R = mean_R - above_R * stderr_R
    # Where most traces are exactly zero the lognormal end is NaN: the other one stands.
    upper_R = np.fmax(upper_R, _lognormal_upper(sums_RN, counts_RN, rng))
    ceiling_R = mean_R * np.exp(MAX_LOG_RATIO)
    return np.maximum(mean_R - below_R * stderr_R, 0.0), np.clip(upper_R, mean_R, ceiling_R)


def _stderr(residual_RN: Floats, counts_RN: Floats) -> Floats:
    n = residual_RN.shape[1]
    squares_R = (residual_RN**2).sum(axis=1)
    stderr_R: Floats = np.sqrt(n / (n - 1) * squares_R) / counts_RN.sum(axis=1)
    return stderr_R


def _bootstrap_t(
    sums_RN: Floats, counts_RN: Floats, mean_R: Floats, rng: np.random.Generator
) -> Floats:
    """Studentized means of resampled traces, (B, R); all data sets share the resamples."""
    n = sums_RN.shape[1]
    weights_BN = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)
    residual_NR, counts_NR = (sums_RN - mean_R[:, None] * counts_RN).T, counts_RN.T
    tokens_BR = weights_BN @ counts_NR
    shift_BR = weights_BN @ residual_NR / tokens_BR
    # Squares of the residuals about the resample's own mean, multiplied out.
    squares_BR = weights_BN @ residual_NR**2
    squares_BR -= 2 * shift_BR * (weights_BN @ (residual_NR * counts_NR))
    squares_BR += shift_BR**2 * (weights_BN @ counts_NR**2)
    stderr_BR = np.sqrt(n / (n - 1) * np.maximum(squares_BR, 0.0)) / tokens_BR
    floor_BR = np.abs(shift_BR) / MAX_T
    stderr_BR = np.maximum(stderr_BR, floor_BR)
    t_BR = np.zeros_like(shift_BR)
    np.divide(shift_BR, stderr_BR, out=t_BR, where=stderr_BR > 0)
    return t_BR


def _lognormal_upper(sums_RN: Floats, counts_RN: Floats, rng: np.random.Generator) -> Floats:
    """Upper end were the traces lognormal, (R,); NaN where half of them are zero."""
    n = sums_RN.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        y_RN = np.log(sums_RN / counts_RN)
        median_R = np.median(y_RN, axis=1)
        y_RN = np.maximum(y_RN, (2 * median_R - y_RN.max(axis=1))[:, None])
        mean_R = y_RN.mean(axis=1)
        y_RN = y_RN - mean_R[:, None]
        x_RN = np.log(counts_RN)
        x_RN = x_RN - x_RN.mean(axis=1, keepdims=True)
        # Cholesky factor of the sums of squares and products of (y, x).
        first_R = np.sqrt((y_RN**2).sum(axis=1))
        cross_R = np.divide(
            (x_RN * y_RN).sum(axis=1), first_R, out=np.zeros_like(first_R), where=first_R != 0
        )
        second_R = np.sqrt(np.maximum((x_RN**2).sum(axis=1) - cross_R**2, 0.0))
        # Bartlett's decomposition of a Wishart matrix with n - 1 degrees of freedom.
        chi_DR = np.sqrt(rng.chisquare(n - 1, size=(N_DRAWS, 1)))
        other_chi_DR = np.sqrt(rng.chisquare(n - 2, size=(N_DRAWS, 1)))
        below_DR, normal_DR = rng.standard_normal((2, N_DRAWS, 1))
        scale_DR = first_R / chi_DR
        covariance_DR = scale_DR * (cross_R - second_R * below_DR / other_chi_DR) / chi_DR
        pivot_DR = scale_DR * normal_DR / np.sqrt(n) + scale_DR**2 / 2 + covariance_DR
        log_upper_R = mean_R + np.quantile(pivot_DR, 1 - LOGNORMAL_LEVEL, axis=0)
    upper_R: Floats = np.exp(np.minimum(log_upper_R, np.log(np.finfo(np.float64).max)))
    return upper_R


def _student_on_logs(mean_R: Floats, stderr_R: Floats, n: int) -> tuple[Floats, Floats]:
    """Student's t by the delta method on log m: all that so few traces allow."""
    relative_R = np.divide(stderr_R, mean_R, out=np.zeros_like(mean_R), where=mean_R > 0)
    factor_R = np.exp(float(stats.t.isf(UPPER_LEVEL, n - 1)) * relative_R)
    return mean_R / factor_R, mean_R * factor_R
