"""Sample sizes: what they promise is what simulation gives."""

from functools import cache

import numpy as np
import pytest

from tightfit.drift.statistics.intervals import SINGLE, tango_interval
from tightfit.drift.statistics.needed import (
    DECISION_POWER,
    needed_problems,
    needed_traces,
)
from tightfit.drift.statistics.paired import compare_paired


def paired(b, c, n):
    """One answer a problem, b lost and c won, the rest solved by both."""
    rest = [1.0] * (n - b - c)
    baseline, artifact = [1.0] * b + [0.0] * c, [0.0] * b + [1.0] * c
    return compare_paired(baseline + rest, artifact + rest, samples=1)


@pytest.mark.parametrize(("lost", "won"), [(2, 2), (1, 1), (12, 2), (20, 4)])
def test_one_answer_has_the_promised_power(lost, won):
    n = needed_problems(paired(lost, won, 100), 2.0)
    shares = (lost / 100, won / 100)
    draws = np.random.default_rng(7).multinomial(n, (*shares, 1 - sum(shares)), size=1500)
    interval = cache(lambda b, c: tango_interval(b, c, n, SINGLE))
    ends = np.array([interval(int(b), int(c)) for b, c, _ in draws])
    decided = (ends[:, 1] < 0.02) if lost - won < 2 else (ends[:, 0] > 0.02)
    assert DECISION_POWER - 0.05 < decided.mean() < 0.97


def test_several_answers_have_the_promised_power():
    rng = np.random.default_rng(8)

    def scores(n):
        chance = np.where(rng.random(n) < 0.3, 0.8, 1.0)
        return rng.binomial(4, [chance, chance]) / 4

    def observed_need():
        # Both orders together: an observed drop of exactly zero.
        first, second = scores(150)
        observed = compare_paired([*first, *second], [*second, *first], samples=4)
        return needed_problems(observed, 2.0)

    needed = int(np.median([observed_need() for _ in range(15)]))
    runs = [compare_paired(*scores(needed), samples=4) for _ in range(200)]
    passed = np.mean([each.drop_interval_points[1] < 2.0 for each in runs])
    assert DECISION_POWER - 0.1 < passed < 0.93


def test_without_discordance_it_is_where_the_bound_falls_below():
    n = needed_problems(paired(0, 0, 64), 2.0)
    assert tango_interval(0, 0, n, SINGLE)[1] < 0.02
    assert tango_interval(0, 0, n - 1, SINGLE)[1] >= 0.02


def test_several_answers_without_discordance_suffice():
    n = needed_problems(compare_paired([1.0] * 20, [1.0] * 20, samples=4), 2.0)
    assert compare_paired([1.0] * n, [1.0] * n, samples=4).drop_interval_points[1] < 2.0


def test_it_is_more_than_there_were():
    assert needed_problems(paired(0, 0, 300), 2.0) == 301


def test_a_drop_at_the_limit_is_never_decided():
    assert needed_problems(paired(3, 1, 100), 2.0) is None
    assert needed_problems(paired(0, 0, 100), 0.0) is None
    assert needed_traces(0.05, 0.01, (0.03, 0.08), 30, 0.05) is None


def test_traces_grow_as_the_mean_nears_the_limit():
    far = needed_traces(0.03, 0.01, (0.015, 0.06), 30, 0.05)
    near = needed_traces(0.045, 0.01, (0.03, 0.075), 30, 0.05)
    beyond = needed_traces(0.06, 0.01, (0.045, 0.09), 30, 0.05)
    assert 31 <= far < near
    assert 31 <= beyond < near


@pytest.mark.parametrize(("kl", "sigma"), [(0.03, 0.7), (0.02, 1.0)])
def test_traces_mostly_suffice(kl, sigma):
    from benchmarks.gate_simulation import drifts

    rng = np.random.default_rng(9)
    first = next(drifts(12, sigma, kl, 1, rng))
    # A typical first run: the true mean, and the interval of the sample scaled to it.
    scale = kl / first.kl_mean_nats
    interval = tuple(scale * end for end in first.kl_interval_nats)
    n = needed_traces(kl, scale * first.kl_mean_stderr_nats, interval, 12, 0.05)
    passed = np.mean([each.kl_interval_nats[1] < 0.05 for each in drifts(n, sigma, kl, 250, rng)])
    assert passed > 0.6
