"""The gate is wrong as rarely as it states, and the simulation would see it if it were not."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import gate_rates
from benchmarks.gate_simulation import (
    AVAILABLE,
    LIMITS,
    MARGIN,
    accuracies,
    drifts,
    fixed_rates,
    sequential_rates,
    single_answers,
)
from tightfit.drift.gate import Outcome, decide
from tightfit.drift.statistics.intervals import STATED_ERROR

RUNS = 1000


def at_most(stated, runs=RUNS):
    """The stated rate and three standard errors."""
    return stated + 3 * math.sqrt(stated * (1 - stated) / runs)


def observed_decide(accuracy, tokens, limits):
    """A gate as one finds them: it compares the observed figures."""
    within = (
        accuracy.drop_points <= limits.max_drop_points and tokens.kl_mean_nats <= limits.max_kl_nats
    )
    outcome = Outcome.PASS if within else Outcome.FAIL
    return dataclasses.replace(decide(accuracy, tokens, limits), outcome=outcome)


@pytest.mark.parametrize(
    ("n", "samples", "discordant", "runs"),
    [(64, 1, 0.05, RUNS), (300, 1, 0.03, RUNS), (500, 1, 0.15, RUNS), (150, 4, 0.05, 400)],
)
def test_false_pass_by_accuracy(n, samples, discordant, runs):
    rng = np.random.default_rng(10)
    rates = fixed_rates(accuracies(n, samples, discordant, MARGIN, runs, rng), None)
    assert rates.passed <= at_most(STATED_ERROR, runs)
    broken = fixed_rates(
        accuracies(n, samples, discordant, MARGIN, 200, rng), None, observed_decide
    )
    assert broken.passed > 0.3


@pytest.mark.parametrize(("traces", "sigma"), [(8, 1.0), (16, 1.5), (64, 0.5)])
def test_false_pass_by_kl(traces, sigma):
    rng = np.random.default_rng(11)
    accurate = [single_answers(0, 0, AVAILABLE)] * RUNS
    drift = list(drifts(traces, sigma, LIMITS.max_kl_nats, RUNS, rng))
    rates = fixed_rates(iter(accurate), iter(drift))
    assert rates.passed <= at_most(STATED_ERROR)
    assert rates.failed <= at_most(STATED_ERROR)
    assert fixed_rates(iter(accurate), iter(drift), observed_decide).passed > 0.3


@pytest.mark.parametrize(("n", "discordant", "sigma"), [(200, 0.03, 0.5), (500, 0.1, 1.0)])
def test_false_fail_by_either(n, discordant, sigma):
    rng = np.random.default_rng(12)
    drift = drifts(32, sigma, LIMITS.max_kl_nats, RUNS, rng)
    rates = fixed_rates(accuracies(n, 1, discordant, MARGIN, RUNS, rng), drift)
    assert rates.failed <= at_most(2 * STATED_ERROR)
    assert rates.passed <= at_most(STATED_ERROR)


@pytest.mark.parametrize(("samples", "discordant"), [(1, 0.02), (1, 0.1), (4, 0.05)])
def test_false_alarms_of_the_sequential_gate(samples, discordant):
    rng = np.random.default_rng(13)
    rates, _ = sequential_rates(discordant, MARGIN, RUNS, rng, samples=samples)
    assert rates.passed <= at_most(STATED_ERROR)
    assert rates.failed <= at_most(STATED_ERROR)
    # It is no gate that never decides.
    good, _ = sequential_rates(0.0, 0.0, 20, rng)
    bad, sizes = sequential_rates(0.2, 0.18, 100, rng, samples=samples)
    assert good.passed == 1
    assert bad.failed > 0.95
    assert np.median(sizes) < 120


def test_looking_often_at_a_fixed_interval_would_raise_false_alarms():
    """Why the sequential gate needs evidence of its own: the interval at each of 16 looks."""
    rng = np.random.default_rng(14)
    lost, won = 0.05 + MARGIN / 2, 0.05 - MARGIN / 2
    decided = 0
    for _ in range(300):
        counts = rng.multinomial(32, (lost, won, 1 - lost - won), size=16).cumsum(axis=0)
        ends = [
            single_answers(int(b), int(c), int(b + c + rest)).drop_interval_points
            for b, c, rest in counts
        ]
        decided += any(low > 100 * MARGIN or high < 100 * MARGIN for low, high in ends)
    assert decided / 300 > at_most(2 * STATED_ERROR, 300)


def test_tables_go_between_the_markers(tmp_path, monkeypatch):
    document = tmp_path / "drift.md"
    document.write_text(f"# Title\n{gate_rates.BEGIN}\nold\n{gate_rates.END}\nrest\n")
    monkeypatch.setattr(gate_rates, "DOCUMENT", document)
    monkeypatch.setattr(gate_rates, "gate_section", lambda: "new\n")
    gate_rates.write_gate_rates()
    expected = f"# Title\n{gate_rates.BEGIN}\nnew\n{gate_rates.END}\nrest\n"
    assert document.read_text() == expected
