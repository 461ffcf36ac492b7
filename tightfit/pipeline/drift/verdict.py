"""When enough was measured: at once for a fixed sample, or as soon as the evidence suffices."""

from dataclasses import dataclass

from tightfit.drift.answers import ModelAnswers
from tightfit.drift.gate import GateDecision, Limits, Outcome, SequentialStop, decide
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.statistics.paired import PairedAccuracy, compare_paired
from tightfit.drift.statistics.sequential import SequentialTest
from tightfit.pipeline.drift.baseline import Baseline
from tightfit.pipeline.drift.measurement import Measurement

LOOK_PROBLEMS = 32
"""Problems between two looks at the evidence: twice what runs in parallel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of one artifact, and what the gate says."""

    baseline: ModelAnswers
    artifact: ModelAnswers
    tokens: TokenDrift | None
    tokens_absent: str
    accuracy: PairedAccuracy
    decision: GateDecision


def measure_all(baseline: Baseline, measurement: Measurement, limits: Limits) -> Measured:
    """Every problem, then the gate."""
    n = len(baseline.questions.problems)
    reference, answers = baseline.answers(n), measurement.answers(n)
    tokens, absent = measurement.token_drift(baseline.traces())
    accuracy = _compare(baseline, reference, answers)
    return Measured(
        baseline=reference,
        artifact=answers,
        tokens=tokens,
        tokens_absent=absent,
        accuracy=accuracy,
        decision=decide(accuracy, tokens, limits, tokens_absent=absent),
    )


def measure_until_decided(baseline: Baseline, measurement: Measurement, limits: Limits) -> Measured:
    """Token drift on its fixed traces first, then problems until the evidence decides.

    An artifact whose token drift already fails is not asked further than the first look.
    """
    tokens, absent = measurement.token_drift(baseline.traces())
    available = len(baseline.questions.problems)
    test = SequentialTest(limits.max_drop_points)
    n = 0
    while n < available and not test.decided:
        seen, n = n, min(n + LOOK_PROBLEMS, available)
        reference, answers = baseline.answers(n), measurement.answers(n)
        for kept, found in zip(reference.scores[seen:], answers.scores[seen:], strict=True):
            test.update(kept - found)
        accuracy = _compare(baseline, reference, answers)
        stop = SequentialStop(
            looked_at=test.looked_at,
            available=available,
            pass_evidence=test.pass_evidence,
            fail_evidence=test.fail_evidence,
            threshold=test.threshold,
            needed=test.needed,
        )
        decision = decide(accuracy, tokens, limits, tokens_absent=absent, sequential=stop)
        if decision.outcome is Outcome.FAIL:
            break
    return Measured(
        baseline=reference,
        artifact=answers,
        tokens=tokens,
        tokens_absent=absent,
        accuracy=accuracy,
        decision=decision,
    )


def _compare(baseline: Baseline, reference: ModelAnswers, answers: ModelAnswers) -> PairedAccuracy:
    protocol = baseline.questions.protocol
    return compare_paired(
        reference.scores, answers.scores, samples=protocol.samples, seed=protocol.seed
    )
