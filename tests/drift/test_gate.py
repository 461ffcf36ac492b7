"""The three outcomes of the gate, and what it says about each."""

import json
from dataclasses import asdict, replace

import pytest

from tightfit.drift.gate import GateDecision, Outcome, decide, worst_exit_status
from tightfit.drift.metrics import TokenDrift
from tightfit.drift.statistics import compare_paired

DRIFT = TokenDrift(
    n_samples=100,
    n_tokens=5000,
    kl_mean_nats=0.01,
    kl_mean_stderr_nats=0.001,
    kl_median_nats=0.001,
    kl_p99_nats=0.1,
    kl_max_nats=1.0,
    top1_agreement=0.99,
    top1_agreement_stderr=0.001,
    baseline_perplexity=1.2,
    artifact_perplexity=1.21,
)


def accuracy(b, c, n):
    rest = n - b - c
    return compare_paired([True] * b + [False] * c + [True] * rest, [False] * b + [True] * (n - b))


def test_pass_needs_both_upper_bounds():
    decision = decide(accuracy(3, 3, 500), DRIFT)
    assert (decision.outcome, decision.exit_status, decision.needed_n) == (Outcome.PASS, 0, None)
    assert all("within" in reason for reason in decision.reasons)


def test_fail_by_accuracy():
    decision = decide(accuracy(60, 10, 500), DRIFT)
    assert (decision.outcome, decision.exit_status) == (Outcome.FAIL, 3)
    assert "exceeded" in decision.reasons[0]
    assert "within" in decision.reasons[1]


def test_fail_by_divergence_whatever_the_accuracy_says():
    drift = replace(DRIFT, kl_mean_nats=0.2)
    for problems in (accuracy(0, 0, 20), accuracy(3, 3, 500)):
        assert decide(problems, drift).outcome is Outcome.FAIL


def test_no_flip_on_few_problems_is_inconclusive():
    decision = decide(accuracy(0, 0, 64), DRIFT)
    assert (decision.outcome, decision.exit_status) == (Outcome.INCONCLUSIVE, 5)
    assert decision.needed_n is not None
    # What it asks for is enough when nothing flips there either.
    assert decide(accuracy(0, 0, decision.needed_n), DRIFT).outcome is Outcome.PASS
    assert str(decision.needed_n) in decision.reasons[0]


def test_uncertain_divergence_is_inconclusive():
    drift = replace(DRIFT, kl_mean_nats=0.045, kl_mean_stderr_nats=0.01)
    decision = decide(accuracy(3, 3, 500), drift)
    assert decision.outcome is Outcome.INCONCLUSIVE
    assert decision.needed_n is not None
    assert decision.needed_n > drift.n_samples


def test_one_sample_cannot_pass():
    drift = replace(DRIFT, n_samples=1, kl_mean_stderr_nats=None)
    decision = decide(accuracy(3, 3, 500), drift)
    assert (decision.outcome, decision.needed_n) == (Outcome.INCONCLUSIVE, 2)


def test_limits_are_the_users():
    problems = accuracy(60, 10, 500)
    assert decide(problems, DRIFT, max_drop_points=20).outcome is Outcome.PASS
    assert decide(problems, DRIFT, max_drop_points=20, max_kl_nats=0.001).outcome is Outcome.FAIL


@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_a_better_artifact_passes(limit):
    assert decide(accuracy(2, 40, 500), DRIFT, max_drop_points=limit).outcome is Outcome.PASS


def test_no_number_of_problems_decides_the_limit_itself():
    decision = decide(accuracy(10, 0, 500), DRIFT, max_drop_points=2.0)
    assert (decision.outcome, decision.needed_n) == (Outcome.INCONCLUSIVE, None)
    json.dumps(asdict(decision), allow_nan=False)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["pass"], 0),
        (["pass", "inconclusive", "pass"], 5),
        (["inconclusive", "fail", "pass"], 3),
        (["fail", "fail"], 3),
    ],
)
def test_several_artifacts_exit_with_the_worst(outcomes, status):
    decisions = [GateDecision(outcome=Outcome(each), reasons=()) for each in outcomes]
    assert worst_exit_status(decisions) == status
