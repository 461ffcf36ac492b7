"""Comparisons on the same problems against counting, binomial sums and another bootstrap."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from tightfit.drift.statistics.bootstrap import bootstrap_interval
from tightfit.drift.statistics.intervals import SINGLE, tango_interval, wilson_interval
from tightfit.drift.statistics.paired import compare_paired, sign_test_p


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (9, 9), (30, 12)])
def test_sign_test_equals_the_binomial_sum(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(max(b, c), n + 1)) / 2**n
    assert sign_test_p(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_one_answer_a_problem():
    baseline = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    artifact = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    result = compare_paired(baseline, artifact, samples=1)
    assert (result.n, result.samples) == (6, 1)
    assert (result.baseline_accuracy, result.artifact_accuracy) == (4 / 6, 3 / 6)
    assert (result.baseline_only, result.artifact_only) == (2, 1)
    assert result.drop_points == pytest.approx(100 / 6)
    expected = [100 * end for end in tango_interval(2, 1, 6, SINGLE)]
    assert list(result.drop_interval_points) == pytest.approx(expected)
    assert result.baseline_interval == wilson_interval(4 / 6, 6)
    json.dumps(asdict(result), allow_nan=False)


def test_several_answers_a_problem():
    baseline, artifact = [1.0, 0.75, 0.5, 0.0], [0.75, 0.75, 0.75, 0.0]
    result = compare_paired(baseline, artifact, samples=4)
    assert (result.baseline_only, result.artifact_only) == (1, 1)
    assert result.drop_points == 0
    assert result.mcnemar_p == 1.0
    low, high = result.drop_interval_points
    assert low < 0 < high
    json.dumps(asdict(result), allow_nan=False)


def test_shares_that_round_are_still_equal():
    # 2/3 computed in two ways differs in the last bit; no answer differs.
    result = compare_paired([2 / 3], [1 - 1 / 3], samples=3)
    assert (result.baseline_only, result.artifact_only, result.drop_points) == (0, 0, 0)


def test_one_problem_is_compared():
    result = compare_paired([1.0], [0.5], samples=2)
    low, high = result.drop_interval_points
    assert -100 <= low < 50 < high <= 100


def test_bootstrap_equals_resampling_rows():
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, -0.5, 0, 0.25, 1.0], p=[0.05, 0.1, 0.6, 0.15, 0.1], size=80)
    slow = rng.choice(differences, size=(20_000, 80)).mean(axis=1)
    expected = np.quantile(slow, [0.05, 0.95])
    assert bootstrap_interval(differences, seed=1) == pytest.approx(expected, abs=0.012)


def test_bootstrap_equals_scipys():
    differences = np.array([1.0] * 12 + [-1.0] * 5 + [0.0] * 83)
    theirs = stats.bootstrap(
        (differences,),
        np.mean,
        method="percentile",
        confidence_level=0.9,
        n_resamples=9999,
        random_state=0,
    ).confidence_interval
    mine = bootstrap_interval(differences, seed=0)
    assert mine == pytest.approx((theirs.low, theirs.high), abs=0.011)


def test_bootstrap_is_seeded():
    differences = np.linspace(-1, 1, 40)
    assert bootstrap_interval(differences, seed=3) == bootstrap_interval(differences, seed=3)
    assert bootstrap_interval(differences, seed=3) != bootstrap_interval(differences, seed=4)
