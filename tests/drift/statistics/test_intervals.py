"""Intervals against brute force, closed forms, published numbers and enumeration."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from tightfit.drift.statistics.intervals import (
    REPEATED,
    SINGLE,
    STATED_ERROR,
    Levels,
    accuracy_interval,
    bonett_price_interval,
    levels_for,
    normal_z,
    repeated_interval,
    tango_interval,
    tango_statistic,
    wilson_interval,
)

NOMINAL = Levels(lower=STATED_ERROR, upper=STATED_ERROR)


def constrained_statistic(b, c, n, drop):
    """Tango's statistic with the nuisance parameter found by maximizing the likelihood."""

    def log_likelihood(q):
        cells = ((b, q + drop), (c, q), (n - b - c, 1 - 2 * q - drop))
        return sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    low, high = max(0.0, -drop), (1 - drop) / 2
    grid = np.linspace(low, high, 2001)
    best = grid[np.argmax([log_likelihood(q) for q in grid])]
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(
        lambda q: -log_likelihood(q),
        bounds=(max(low, best - step), min(high, best + step)),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    q = max((best, found), key=log_likelihood)
    return (b - c - n * drop) / math.sqrt(n * (2 * q + drop * (1 - drop)))


@pytest.mark.parametrize(("b", "c", "n"), [(7, 3, 50), (0, 0, 64), (12, 0, 40), (0, 5, 30)])
@pytest.mark.parametrize("drop", [-0.3, -0.05, 0.02, 0.1, 0.4])
def test_tango_statistic_uses_the_constrained_maximum_likelihood(b, c, n, drop):
    expected = constrained_statistic(b, c, n, drop)
    assert tango_statistic(b, c, n, drop) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("b", "c", "n"), [(7, 3, 50), (1, 0, 20), (2, 9, 64)])
def test_tango_interval_against_a_grid_of_drops(b, c, n):
    step = 0.004
    grid = np.arange(-0.6, 0.6, step)
    z = np.array([constrained_statistic(b, c, n, drop) for drop in grid])
    inside = grid[(z <= normal_z(SINGLE.lower)) & (z >= -normal_z(SINGLE.upper))]
    low, high = tango_interval(b, c, n, SINGLE)
    assert low == pytest.approx(inside[0], abs=step)
    assert high == pytest.approx(inside[-1], abs=step)


@pytest.mark.parametrize("n", [10, 64, 500])
def test_tango_without_discordant_problems_has_a_closed_form(n):
    lower_z, upper_z = stats.norm.isf(SINGLE.lower), stats.norm.isf(SINGLE.upper)
    expected = (-(lower_z**2) / (n + lower_z**2), upper_z**2 / (n + upper_z**2))
    assert tango_interval(0, 0, n, SINGLE) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("b", "c", "n"), [(5, 0, 5), (0, 5, 5), (1, 0, 1), (500, 0, 500)])
def test_tango_at_the_edges_stays_inside(b, c, n):
    low, high = tango_interval(b, c, n, SINGLE)
    assert -1 <= low <= (b - c) / n <= high <= 1


def test_bonett_and_price_on_published_counts():
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014, table 8, by hand here:
    # 1 lost, 7 won of 21 (airway hyper-responsiveness, Bentur et al. 2009).
    differences = np.array([1.0] + [-1.0] * 7 + [0.0] * 13)
    lost, won, n = 2 / 23, 8 / 23, 23
    reach = 1.644854 * math.sqrt((lost + won - (lost - won) ** 2) / n)
    expected = (lost - won - reach, lost - won + reach)
    assert bonett_price_interval(differences, NOMINAL) == pytest.approx(expected, abs=1e-6)


def test_repeated_answers_that_agree_are_no_sharper_than_one_answer():
    differences = np.array([1.0] * 9 + [-1.0] * 4 + [0.0] * 87)
    single = tango_interval(9, 4, 100, REPEATED)
    low, high = repeated_interval(differences, REPEATED)
    assert low <= single[0]
    assert high >= single[1]


def test_repeated_interval_shrinks_with_the_size_of_differences():
    signs = np.array([1.0] * 20 + [-1.0] * 20 + [0.0] * 260)
    widths = [np.diff(repeated_interval(signs * size, REPEATED))[0] for size in (1, 0.5, 0.25)]
    assert widths[0] > 1.5 * widths[1] > 1.5 * widths[2]


def test_scaled_tango_is_scale_free():
    # Halving every difference halves the scaled interval, as long as it decides the width.
    differences = np.array([1.0] * 30 + [0.0] * 370)
    wide = repeated_interval(differences, REPEATED)
    unit_high = tango_interval(30, 0, 400, REPEATED)[1]
    assert wide[1] == pytest.approx(unit_high)
    assert repeated_interval(differences / 2, REPEATED)[1] == pytest.approx(unit_high / 2)


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (13, 20), (20, 20), (430, 500)])
def test_wilson_equals_scipys(correct, n):
    interval = stats.binomtest(correct, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(correct / n, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_accuracy_of_several_answers_is_between_problems_and_answers():
    rng = np.random.default_rng(0)
    apart = rng.binomial(4, 0.7, 2000) / 4
    together = np.repeat(rng.random(2000) < 0.7, 1).astype(float)
    assert accuracy_interval(apart, 4) == pytest.approx(
        wilson_interval(apart.mean(), 8000), abs=1e-3
    )
    assert accuracy_interval(together, 4) == pytest.approx(
        wilson_interval(together.mean(), 2000), abs=1e-3
    )


def test_accuracy_of_several_answers_covers():
    rng = np.random.default_rng(1)
    scores = rng.binomial(4, rng.beta(2, 1, size=(3000, 60))) / 4
    ends = np.array([accuracy_interval(each, 4) for each in scores])
    missed = ((ends > 2 / 3)[:, 0] | (ends < 2 / 3)[:, 1]).mean()
    assert 0.06 < missed < 0.115


@pytest.mark.parametrize("n", [16, 21, 45, 60, 94, 234])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
def test_levels_hold_where_the_nominal_one_does_not(n, margin):
    from benchmarks.gate_rates import worst_errors

    assert max(worst_errors(n, margin, SINGLE)) <= STATED_ERROR


def test_the_nominal_level_does_not_hold():
    from benchmarks.gate_rates import worst_errors

    assert worst_errors(25, 0.1, NOMINAL)[0] > 0.07
    assert worst_errors(156, 0.02, NOMINAL)[1] > 0.095


def test_the_enumeration_is_the_intervals_own_decision():
    """`z(margin)` beyond its quantile and an interval beyond the margin are the same tables."""
    margin, n = 0.05, 40
    for b in range(12):
        for c in range(12):
            low, high = tango_interval(b, c, n, SINGLE)
            z = tango_statistic(b, c, n, margin)
            assert (high < margin) == (z < -normal_z(SINGLE.upper))
            assert (low > margin) == (z > normal_z(SINGLE.lower))


@pytest.mark.parametrize("agreeing", [True, False])
def test_levels_hold_for_several_answers(agreeing):
    rng = np.random.default_rng(2)
    n, margin, runs = 75, 0.05, 1500
    killed = rng.random((runs, n)) < margin / (1.0 if agreeing else 0.75)
    if agreeing:  # only losses, each of all answers: what the adjusted Wald interval gets wrong
        differences = killed.astype(float)
    else:
        kept, again = rng.binomial(4, 0.75, size=(2, runs, n)) / 4
        differences = kept - again * ~killed
    ends = np.array([repeated_interval(each, levels_for(4)) for each in differences])
    slack = 3 * math.sqrt(STATED_ERROR / runs)
    assert (ends[:, 1] < margin).mean() < STATED_ERROR + slack
    assert (ends[:, 0] > margin).mean() < STATED_ERROR + slack
    if agreeing:
        adjusted = np.array([bonett_price_interval(each, NOMINAL)[1] for each in differences])
        assert (adjusted < margin).mean() > STATED_ERROR + slack
