"""The three outcomes of the gate, and what it says about each."""

import json
from dataclasses import asdict, replace

import pytest
from support.drift_reports import token_drift

from tightfit.drift.gate import (
    Finding,
    GateDecision,
    Limits,
    Outcome,
    SequentialStop,
    decide,
    worst_exit_status,
)
from tightfit.drift.statistics.paired import compare_paired

DRIFT = token_drift(0.01)
LIMITS = Limits()


def accuracy(b, c, n):
    rest = [1.0] * (n - b - c)
    baseline, artifact = [1.0] * b + [0.0] * c, [0.0] * b + [1.0] * c
    return compare_paired(baseline + rest, artifact + rest, samples=1)


def stop(passing, failing, needed=None):
    return SequentialStop(
        looked_at=120,
        available=500,
        pass_evidence=passing,
        fail_evidence=failing,
        threshold=20.0,
        needed=needed,
    )


def test_pass_needs_both_intervals_within():
    decision = decide(accuracy(3, 3, 500), DRIFT, LIMITS)
    assert (decision.outcome, decision.exit_status) == (Outcome.PASS, 0)
    assert [each.figure for each in decision.findings] == ["accuracy drop", "mean KL"]
    assert all(each.needed is None and "within" in each.reason for each in decision.findings)
    json.dumps(asdict(decision), allow_nan=False)


def test_an_equal_artifact_with_a_usual_number_of_flips_passes():
    """What a good 4-bit file does on MATH-500: a handful of flips each way."""
    assert decide(accuracy(8, 6, 500), DRIFT, LIMITS).outcome is Outcome.PASS
    assert decide(accuracy(9, 10, 500), DRIFT, LIMITS).outcome is Outcome.PASS
    assert decide(accuracy(11, 6, 500), DRIFT, LIMITS).outcome is Outcome.INCONCLUSIVE


def test_fail_by_accuracy():
    decision = decide(accuracy(60, 10, 500), DRIFT, LIMITS)
    assert (decision.outcome, decision.exit_status) == (Outcome.FAIL, 3)
    first, second = decision.findings
    assert (first.outcome, second.outcome) == (Outcome.FAIL, Outcome.PASS)
    assert "exceeds" in first.reason


def test_fail_by_divergence_whatever_the_accuracy_says():
    for problems in (accuracy(0, 0, 20), accuracy(3, 3, 500)):
        assert decide(problems, token_drift(0.2), LIMITS).outcome is Outcome.FAIL


def test_reason_has_figure_interval_sample_and_limit():
    problems = accuracy(6, 3, 100)
    first, second = decide(problems, DRIFT, LIMITS).findings
    low, high = problems.drop_interval_points
    for part in ("+3.00 points", f"{low:+.2f} to {high:+.2f}", "100 problems", "limit 2"):
        assert part in first.reason
    for part in ("0.01 nats", "0.008 to 0.012", "64 traces", "limit 0.05"):
        assert part in second.reason
    assert f"about {first.needed} problems would decide" in first.reason


def test_no_flip_on_few_problems_is_inconclusive():
    decision = decide(accuracy(0, 0, 64), DRIFT, LIMITS)
    assert (decision.outcome, decision.exit_status) == (Outcome.INCONCLUSIVE, 5)
    needed = decision.findings[0].needed
    # What it asks for is enough when nothing flips there either, and one fewer is not.
    assert decide(accuracy(0, 0, needed), DRIFT, LIMITS).outcome is Outcome.PASS
    assert decide(accuracy(0, 0, needed - 1), DRIFT, LIMITS).outcome is Outcome.INCONCLUSIVE


def test_uncertain_divergence_is_inconclusive():
    drift = replace(token_drift(0.045), kl_interval_nats=(0.03, 0.08))
    decision = decide(accuracy(3, 3, 500), drift, LIMITS)
    assert decision.outcome is Outcome.INCONCLUSIVE
    assert decision.findings[1].needed > drift.n_samples


@pytest.mark.parametrize("interval", [None, (0.001, 0.002)])
@pytest.mark.parametrize("kl", [0.001, 2.0])
def test_few_traces_decide_nothing(interval, kl):
    drift = replace(
        token_drift(kl),
        n_samples=1 if interval is None else 3,
        kl_interval_nats=interval,
        kl_mean_stderr_nats=None if interval is None else 1e-4,
    )
    decision = decide(accuracy(3, 3, 500), drift, LIMITS)
    assert (decision.outcome, decision.findings[1].needed) == (Outcome.INCONCLUSIVE, 8)
    assert "8 traces" in decision.findings[1].reason


def test_without_token_drift_accuracy_decides_and_it_says_so():
    decision = decide(accuracy(3, 3, 500), None, LIMITS, tokens_absent="no log-probabilities")
    assert decision.outcome is Outcome.PASS
    (finding,) = decision.findings
    assert "KL was not measured (no log-probabilities)" in finding.reason
    assert decide(accuracy(60, 10, 500), None, LIMITS).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("passing", "failing", "outcome"),
    [
        (21.0, 0.1, Outcome.PASS),
        (20.0, 0.1, Outcome.PASS),
        (0.001, 55.0, Outcome.FAIL),
        (19.9, 0.3, Outcome.INCONCLUSIVE),
    ],
)
# Intervals that say the opposite: the evidence decides.
@pytest.mark.parametrize("problems", [accuracy(0, 0, 500), accuracy(60, 10, 500)])
def test_evidence_decides_a_sequential_run(problems, passing, failing, outcome):
    ended = stop(passing, failing, needed=700)
    decision = decide(problems, DRIFT, LIMITS, sequential=ended)
    assert decision.outcome is outcome
    assert decision.sequential == ended
    finding = decision.findings[0]
    assert "sequential test" in finding.reason
    assert "120 of 500 problems" in finding.reason
    assert finding.needed == (700 if outcome is Outcome.INCONCLUSIVE else None)


def test_divergence_fails_a_sequential_run_too():
    ended = stop(21.0, 0.1)
    assert decide(accuracy(0, 0, 500), token_drift(0.2), LIMITS, sequential=ended).outcome == "fail"


def test_limits_are_the_users():
    problems = accuracy(60, 10, 500)
    assert decide(problems, DRIFT, Limits(max_drop_points=20)).outcome is Outcome.PASS
    strict = Limits(max_drop_points=20, max_kl_nats=0.001)
    assert decide(problems, DRIFT, strict).outcome is Outcome.FAIL


@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_a_better_artifact_passes(limit):
    limits = Limits(max_drop_points=limit)
    assert decide(accuracy(2, 40, 500), DRIFT, limits).outcome is Outcome.PASS


def test_no_number_of_problems_decides_the_limit_itself():
    decision = decide(accuracy(10, 0, 500), DRIFT, LIMITS)
    assert (decision.outcome, decision.findings[0].needed) == (Outcome.INCONCLUSIVE, None)
    assert "no number of problems" in decision.findings[0].reason


def test_several_answers_are_named():
    problems = compare_paired([1.0, 0.75] * 40, [0.75, 1.0] * 40, samples=4)
    assert "80 problems of 4 answers each" in decide(problems, DRIFT, LIMITS).findings[0].reason


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
    decisions = [
        GateDecision(
            outcome=Outcome(each),
            findings=(Finding(figure="accuracy drop", outcome=Outcome(each), reason=""),),
        )
        for each in outcomes
    ]
    assert worst_exit_status(decisions) == status


def test_kl_does_not_pass_where_much_of_the_probability_is_unseen():
    seen = token_drift(0.001)
    unseen = replace(seen, tail_mass=0.02)
    equal = accuracy(0, 0, 500)
    assert decide(equal, seen, Limits()).outcome is Outcome.PASS
    decision = decide(equal, unseen, Limits())
    assert decision.outcome is Outcome.INCONCLUSIVE
    assert "2.00% of the probability is unseen" in decision.findings[1].reason
    # What is seen already is a lower bound: it can fail.
    above = replace(token_drift(1.0), tail_mass=0.02)
    assert decide(equal, above, Limits()).outcome is Outcome.FAIL
