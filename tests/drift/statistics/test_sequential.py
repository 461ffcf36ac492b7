"""The betting test against direct products, and its promises by simulation."""

import math

import numpy as np
import pytest

from tightfit.drift.statistics.outcome import Outcome
from tightfit.drift.statistics.sequential import STAKES_G, WEIGHTS_G, SequentialTest


def direct_evidence(differences, margin):
    """Both e-values by multiplying out."""
    passing = failing = 0.0
    for stake, weight in zip(STAKES_G, WEIGHTS_G, strict=True):
        up, down = stake / (1 - margin), stake / (1 + margin)
        passing += weight * math.prod(1 + up * (margin - each) for each in differences)
        failing += weight * math.prod(1 + down * (each - margin) for each in differences)
    return passing, failing


def test_evidence_equals_the_product():
    rng = np.random.default_rng(0)
    differences = rng.choice([-1, -0.25, 0, 0.25, 1], p=[0.03, 0.1, 0.73, 0.1, 0.04], size=90)
    test = SequentialTest(2.0)
    for n, each in enumerate(differences, start=1):
        test.update(float(each))
        assert test.decided is None
        expected = direct_evidence(differences[:n], 0.02)
        assert (test.pass_evidence, test.fail_evidence) == pytest.approx(expected)
    assert test.looked_at == 90


def test_bets_are_fair_at_the_margin():
    """The expected growth is 1 when the mean is the margin: no bet has an edge."""
    assert WEIGHTS_G.sum() == pytest.approx(1)
    for lost, won in ((0.02, 0.0), (0.1, 0.08), (0.5, 0.48)):
        chances = {1.0: lost, -1.0: won, 0.0: 1 - lost - won}
        mean = np.zeros(2)
        for difference, chance in chances.items():
            mean += chance * np.array(direct_evidence([difference], 0.02))
        assert mean == pytest.approx([1, 1])


@pytest.mark.parametrize(("margin", "difference"), [(0.0, 1.0), (2.0, 1.0), (99.0, -1.0)])
def test_no_stake_is_lost_whole(margin, difference):
    test = SequentialTest(margin, alpha=1e-12)
    for _ in range(20):
        test.update(difference)
    assert test.pass_evidence > 0
    assert test.fail_evidence > 0


def test_nothing_lost_passes_by_191_problems():
    test = SequentialTest(2.0)
    while test.decided is None:
        test.update(0.0)
    assert test.decided is Outcome.PASS
    # The largest stake alone: log(20 / 0.45) / log(1 + 0.95 / 0.98 * 0.02) = 197.6; others help.
    assert test.looked_at == 191


def test_a_big_loss_fails_early():
    rng = np.random.default_rng(1)
    sizes = []
    for _ in range(50):
        test = SequentialTest(2.0)
        while test.decided is None:
            test.update(float(rng.random() < 0.3))
        assert test.decided is Outcome.FAIL
        sizes.append(test.looked_at)
    assert np.median(sizes) < 32


def test_a_decision_stands():
    test = SequentialTest(2.0)
    for _ in range(300):
        test.update(0.0)
    evidence, looked_at = test.pass_evidence, test.looked_at
    for _ in range(50):
        test.update(1.0)
    assert test.decided is Outcome.PASS
    assert (test.pass_evidence, test.looked_at) == (evidence, looked_at)
    assert evidence >= test.threshold == 20


def test_needed_without_a_loss_is_where_it_passes():
    test = SequentialTest(2.0)
    assert test.needed is None
    for _ in range(60):
        test.update(0.0)
    # The estimate takes the best stake alone, which the others help a little.
    assert test.needed == 198


def test_needed_is_about_right():
    rng = np.random.default_rng(2)
    differences = [1.0] * 1 + [-1.0] * 3 + [0.0] * 96
    test = SequentialTest(2.0)
    for each in differences:
        test.update(each)
    decided = 0
    for _ in range(200):
        again = SequentialTest(2.0)
        for each in rng.choice(differences, test.needed):
            again.update(float(each))
        decided += again.decided is Outcome.PASS
    assert 0.65 < decided / 200 < 0.95


def test_needed_is_unknown_at_the_margin():
    test = SequentialTest(2.0)
    for each in np.random.default_rng(4).permutation([1.0] * 12 + [-1.0] * 10 + [0.0] * 78):
        test.update(float(each))
    assert test.looked_at == 100
    assert test.needed is None


def test_the_simulation_is_this_test_on_many_at_once():
    from benchmarks.gate_simulation import differences, sequential_stops

    rng = np.random.default_rng(3)
    drawn = np.concatenate(
        [differences(0.01, 0.0, 6, 1, rng), differences(0.2, 0.15, 6, 4, rng)], axis=0
    )
    for path, stop in zip(drawn, sequential_stops(drawn), strict=True):
        test = SequentialTest(2.0)
        for each in path:
            test.update(float(each))
        assert stop.looked_at == test.looked_at
        assert stop.pass_evidence == pytest.approx(test.pass_evidence)
        assert stop.fail_evidence == pytest.approx(test.fail_evidence)
