"""Intervals of means over traces: a slow bootstrap, and populations whose mean is known."""

import numpy as np
import pytest

from tightfit.drift.statistics import mean as module
from tightfit.drift.statistics.mean import mean_interval, mean_intervals


def slow_bootstrap_t(sums, counts, seed):
    """t* of each resample, trace by trace."""

    def ratio(chosen):
        s, t = sums[chosen], counts[chosen]
        m, n = s.sum() / t.sum(), len(s)
        return m, np.sqrt(n / (n - 1) * ((s - m * t) ** 2).sum()) / t.sum()

    rng = np.random.default_rng(seed)
    everything = np.arange(len(sums))
    m, stderr = ratio(everything)
    resampled = [ratio(rng.choice(everything, len(sums))) for _ in range(20_000)]
    return m, stderr, np.array([(each - m) / error for each, error in resampled])


def test_bootstrap_t_against_a_loop():
    rng = np.random.default_rng(0)
    counts = np.ceil(rng.lognormal(6, 0.5, 24))
    sums = counts * rng.gamma(4, 0.01, 24)
    m, stderr, t = slow_bootstrap_t(sums, counts, 1)
    low, _ = mean_interval(sums, counts, seed=0)
    assert low == pytest.approx(m - np.quantile(t, 1 - module.LOWER_LEVEL) * stderr, rel=0.04)
    fast = np.concatenate(
        [
            module._bootstrap_t(sums[None], counts[None], np.array([m]), np.random.default_rng(s))
            for s in range(10)
        ]
    )
    for level in (0.025, 0.25, 0.75, 0.975):
        assert np.quantile(fast, level) == pytest.approx(np.quantile(t, level), abs=0.15)


def test_lognormal_end_against_drawn_covariances():
    """The pivot, by Wishart matrices from numpy instead of Bartlett's decomposition."""
    rng = np.random.default_rng(3)
    n = 20
    counts = np.round(rng.lognormal(6, 0.6, n))
    sums = counts * rng.lognormal(-4, 0.7, n)
    y, x = np.log(sums / counts), np.log(counts)
    y = np.maximum(y, 2 * np.median(y) - y.max())
    factor = np.linalg.cholesky(np.cov(y, x) * (n - 1))
    pivots = []
    for _ in range(8000):
        normal = rng.standard_normal((2, n - 1))
        unit = np.linalg.cholesky(normal @ normal.T)
        drawn = factor @ np.linalg.inv(unit)
        covariance = drawn @ drawn.T
        mean = y.mean() + drawn[0, 0] * rng.standard_normal() / np.sqrt(n)
        pivots.append(mean + covariance[0, 0] / 2 + covariance[0, 1])
    upper = module._lognormal_upper(sums[None], counts[None], np.random.default_rng(4))
    expected = np.exp(np.quantile(pivots, 1 - module.LOGNORMAL_LEVEL))
    assert upper[0] == pytest.approx(expected, rel=0.06)


def population(rng, n, sigma, correlation, runs):
    """Lognormal traces with true mean 1."""
    normal, other = rng.standard_normal((2, runs, n))
    own = np.sqrt(1 - correlation**2)
    counts = np.ceil(800 * np.exp(0.5 * (correlation * normal + own * other)))
    scale = np.exp(sigma**2 / 2 + correlation * sigma * 0.5)
    return np.exp(sigma * normal) / scale * counts, counts


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize(
    ("sigma", "correlation"), [(0.5, 0.0), (0.5, -0.6), (1.0, 0.6), (1.5, 0.0), (1.5, 0.6)]
)
def test_both_ends_hold_on_skewed_traces(n, sigma, correlation):
    rng = np.random.default_rng(5)
    batches = [
        mean_intervals(*population(rng, n, sigma, correlation, 300), seed=seed) for seed in range(5)
    ]
    low, high = np.concatenate(batches, axis=1)
    # 5 % and three standard errors of 1500 runs.
    assert (high < 1).mean() < 0.067
    assert (low > 1).mean() < 0.067


def test_students_t_would_not_hold():
    rng = np.random.default_rng(6)
    sums, counts = population(rng, 16, 1.5, 0.0, 1500)
    m = sums.sum(axis=1) / counts.sum(axis=1)
    stderr = module._stderr(sums - m[:, None] * counts, counts)
    assert (m + 1.753 * stderr < 1).mean() > 0.2


def test_one_trace_has_no_interval():
    assert mean_interval(np.array([1.0]), np.array([10.0]), seed=0) is None


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 40])
def test_interval_is_finite_and_holds_the_mean(n):
    rng = np.random.default_rng(n)
    sums, counts = rng.exponential(5, n), rng.integers(5, 500, n).astype(float)
    low, high = mean_interval(sums, counts, seed=0)
    assert 0 <= low <= sums.sum() / counts.sum() <= high < np.inf


@pytest.mark.parametrize("n", [2, 12])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_traces_are_certain(n, value):
    counts = np.full(n, 50.0)
    interval = mean_interval(value * counts, counts, seed=0)
    assert interval == pytest.approx((value, value))


@pytest.mark.parametrize("n_zero", [1, 5, 9])
def test_traces_without_any_drift(n_zero):
    sums = np.array([0.0] * n_zero + [2.0 + each / 10 for each in range(10 - n_zero)])
    low, high = mean_interval(sums, np.full(10, 100.0), seed=0)
    assert 0 <= low < sums.sum() / 1000 < high < np.inf


def test_a_tiny_trace_does_not_blow_up_the_upper_end():
    sums = np.array([1e-12, *np.linspace(1, 2, 15)])
    _, high = mean_interval(sums, np.ones(16), seed=0)
    assert high < 2.2


def test_seeded():
    rng = np.random.default_rng(0)
    sums, counts = rng.exponential(5, 20), np.full(20, 100.0)
    assert mean_interval(sums, counts, seed=1) == mean_interval(sums, counts, seed=1)
    assert mean_interval(sums, counts, seed=1) != mean_interval(sums, counts, seed=2)
