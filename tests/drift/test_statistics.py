"""Intervals and tests against brute force, closed forms and simulation."""

import json
import math
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
from scipy import optimize, stats

from tightfit.drift.statistics import (
    DECISION_LEVEL,
    DECISION_POWER,
    compare_paired,
    mcnemar_p,
    mean_bounds,
    needed_problems,
    needed_samples,
    tango_interval,
    tango_statistic,
    wilson_interval,
)


def paired(b, c, n):
    """Correctness of both models with b and c discordant problems, the rest solved by both."""
    rest = n - b - c
    return compare_paired([True] * b + [False] * c + [True] * rest, [False] * b + [True] * (n - b))


@pytest.mark.parametrize(("b", "c", "n"), [(7, 3, 50), (0, 0, 64), (12, 0, 40), (0, 5, 30)])
@pytest.mark.parametrize("drop", [-0.3, -0.05, 0.02, 0.1, 0.4])
def test_tango_statistic_uses_the_constrained_maximum_likelihood(b, c, n, drop):
    def log_likelihood(q):
        cells = ((b, q + drop), (c, q), (n - b - c, 1 - 2 * q - drop))
        return sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    low, high = max(0.0, -drop), (1 - drop) / 2
    grid = np.linspace(low, high, 20_001)
    best = grid[np.argmax([log_likelihood(q) for q in grid])]
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(
        lambda q: -log_likelihood(q),
        bounds=(max(low, best - step), min(high, best + step)),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    q = max((best, found), key=log_likelihood)
    expected = (b - c - n * drop) / math.sqrt(n * (2 * q + drop * (1 - drop)))
    assert tango_statistic(b, c, n, drop) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("n", [10, 64, 500])
def test_tango_without_discordant_problems_has_a_closed_form(n):
    z = stats.norm.isf(0.05)
    low, high = tango_interval(0, 0, n, level=0.05)
    assert (low, high) == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)), rel=1e-6)


def test_tango_ends_are_where_the_score_is_significant():
    low, high = tango_interval(12, 2, 100, level=0.025)
    assert tango_statistic(12, 2, 100, low) == pytest.approx(1.959964, abs=1e-5)
    assert tango_statistic(12, 2, 100, high) == pytest.approx(-1.959964, abs=1e-5)
    assert low < 0.1 < high


@pytest.mark.parametrize(("b", "c", "n"), [(5, 0, 5), (0, 5, 5), (1, 0, 1), (500, 0, 500)])
def test_tango_at_the_edges_stays_inside(b, c, n):
    low, high = tango_interval(b, c, n, level=0.05)
    assert -1 <= low <= (b - c) / n <= high <= 1


@pytest.mark.parametrize(
    ("n", "p_b", "p_c"), [(64, 0.02, 0.02), (64, 0.15, 0.05), (200, 0.01, 0.0), (500, 0.05, 0.03)]
)
def test_coverage_of_the_two_bounds(n, p_b, p_c):
    rng = np.random.default_rng(6)
    draws = rng.multinomial(n, (p_b, p_c, 1 - p_b - p_c), size=4000)
    interval = cache(lambda b, c: tango_interval(b, c, n, level=DECISION_LEVEL))
    bounds = np.array([interval(int(b), int(c)) for b, c, _ in draws])
    drop = p_b - p_c
    # Each side may miss in 5 % of the cases; discreteness and simulation add a little.
    assert (drop > bounds[:, 1]).mean() < 0.07
    assert (drop < bounds[:, 0]).mean() < 0.07
    # And the interval is no wider than it must be: it does miss sometimes.
    assert ((drop > bounds[:, 1]) | (drop < bounds[:, 0])).mean() > 0.005


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (9, 9), (30, 12)])
def test_mcnemar_equals_the_binomial_sum(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(max(b, c), n + 1)) / 2**n
    assert mcnemar_p(b, c) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (13, 20), (20, 20), (430, 500)])
def test_wilson_equals_its_formula(correct, n):
    z, p = stats.norm.isf(0.025), correct / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(correct, n) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_compare_paired_counts():
    baseline = [True, True, True, False, False, True]
    artifact = [True, False, False, True, False, True]
    result = compare_paired(baseline, artifact)
    assert (result.n, result.baseline_correct, result.artifact_correct) == (6, 4, 3)
    assert (result.only_baseline_correct, result.only_artifact_correct) == (2, 1)
    assert result.drop_points == pytest.approx(100 / 6)
    assert result.drop_lower_points < result.drop_points < result.drop_upper_points
    json.dumps(asdict(result), allow_nan=False)


def test_needed_problems_has_the_promised_power():
    # Observed: no drop, 4 % discordant. With the needed number, four in five runs must pass.
    n = needed_problems(paired(2, 2, 100), max_drop_points=2.0)
    assert n is not None
    draws = np.random.default_rng(7).multinomial(n, (0.02, 0.02, 0.96), size=1500)
    interval = cache(lambda b, c: tango_interval(b, c, n, level=DECISION_LEVEL))
    passed = np.mean([interval(int(b), int(c))[1] < 0.02 for b, c, _ in draws])
    assert passed == pytest.approx(DECISION_POWER, abs=0.06)


def test_needed_problems_without_discordance_is_where_the_bound_falls_below():
    n = needed_problems(paired(0, 0, 64), max_drop_points=2.0)
    assert n is not None
    assert tango_interval(0, 0, n, level=DECISION_LEVEL)[1] < 0.02
    assert tango_interval(0, 0, n - 1, level=DECISION_LEVEL)[1] >= 0.02


def test_a_drop_at_the_limit_is_never_decided():
    assert needed_problems(paired(3, 1, 100), max_drop_points=2.0) is None
    assert needed_samples(0.05, 0.01, 30, limit=0.05) is None


def test_mean_bounds_cover():
    rng = np.random.default_rng(8)
    data = rng.gamma(2.0, 1.0, size=(4000, 30))
    bounds = [mean_bounds(row.mean(), row.std(ddof=1) / 30**0.5, 30) for row in data]
    assert np.mean([low > 2.0 for low, _ in bounds]) < 0.06
    assert np.mean([high < 2.0 for _, high in bounds]) < 0.10  # skewed to the right


def test_needed_samples_grows_as_the_mean_nears_the_limit():
    far, near = (needed_samples(mean, 0.01, 30, limit=0.05) for mean in (0.03, 0.045))
    assert far is not None
    assert near is not None
    assert 31 <= far < near
