"""The gate: does the artifact keep what the user asked for, yes, no, or not yet known.

A non-inferiority decision on two figures, each with one-sided 95 % bounds: the accuracy drop
against `max_drop_points` and the mean KL divergence against `max_kl_nats`.

* pass: both upper bounds are below their limits;
* fail: a lower bound is above its limit;
* inconclusive: neither, with the number of problems that it would take.

No observed drop is not yet a pass: on 64 problems without one flip, 4 points may still be lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tightfit.drift.metrics import TokenDrift
from tightfit.drift.statistics import (
    PairedAccuracy,
    mean_bounds,
    needed_problems,
    needed_samples,
)

MAX_DROP_POINTS: Final = 2.0
"""Default limit of the accuracy drop, in percentage points."""
MAX_KL_NATS: Final = 0.05
"""Default limit of the mean token-level KL divergence."""

EXIT_PASS: Final = 0
EXIT_FAIL: Final = 3
EXIT_INCONCLUSIVE: Final = 5


class Outcome(StrEnum):
    """What the gate says."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


EXIT_STATUS: Final = {
    Outcome.PASS: EXIT_PASS,
    Outcome.FAIL: EXIT_FAIL,
    Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """The outcome and why."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """One sentence a figure."""
    needed_n: int | None = None
    """Problems that would decide, when inconclusive; None when no number would."""

    @property
    def exit_status(self) -> int:
        """Exit status of `tightfit drift`."""
        return EXIT_STATUS[self.outcome]


def worst_exit_status(decisions: Iterable[GateDecision]) -> int:
    """Exit status for several artifacts: failed before inconclusive before passed."""
    statuses = {decision.exit_status for decision in decisions}
    worst_first = (EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS)
    return next(status for status in worst_first if status in statuses)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Finding:
    outcome: Outcome
    reason: str
    needed_n: int | None


def decide(
    accuracy: PairedAccuracy,
    drift: TokenDrift,
    *,
    max_drop_points: float = MAX_DROP_POINTS,
    max_kl_nats: float = MAX_KL_NATS,
) -> GateDecision:
    """Decide on measured accuracy and drift."""
    findings = (_judge_accuracy(accuracy, max_drop_points), _judge_kl(drift, max_kl_nats))
    reasons = tuple(finding.reason for finding in findings)
    outcomes = {finding.outcome for finding in findings}
    if Outcome.FAIL in outcomes:
        return GateDecision(outcome=Outcome.FAIL, reasons=reasons)
    if Outcome.INCONCLUSIVE not in outcomes:
        return GateDecision(outcome=Outcome.PASS, reasons=reasons)
    needed = [each.needed_n for each in findings if each.outcome is Outcome.INCONCLUSIVE]
    known = [n for n in needed if n is not None]
    return GateDecision(
        outcome=Outcome.INCONCLUSIVE,
        reasons=reasons,
        needed_n=max(known) if len(known) == len(needed) else None,
    )


def _judge_accuracy(accuracy: PairedAccuracy, limit: float) -> _Finding:
    outcome = _compare(accuracy.drop_lower_points, accuracy.drop_upper_points, limit)
    needed = needed_problems(accuracy, limit)
    reason = (
        f"accuracy drop {accuracy.drop_points:+.2f} points "
        f"[{accuracy.drop_lower_points:+.2f}, {accuracy.drop_upper_points:+.2f}] on {accuracy.n} "
        f"problems, limit {limit:g}: {_describe(outcome, needed, 'problems')}"
    )
    return _Finding(outcome=outcome, reason=reason, needed_n=needed)


def _judge_kl(drift: TokenDrift, limit: float) -> _Finding:
    mean, stderr = drift.kl_mean_nats, drift.kl_mean_stderr_nats
    if stderr is None:
        reason = f"mean KL {mean:.3g} nats on one sample: two are needed to know its error"
        return _Finding(outcome=Outcome.INCONCLUSIVE, reason=reason, needed_n=2)
    lower, upper = mean_bounds(mean, stderr, drift.n_samples)
    outcome = _compare(lower, upper, limit)
    needed = needed_samples(mean, stderr, drift.n_samples, limit)
    reason = (
        f"mean KL {mean:.3g} nats [{max(lower, 0):.3g}, {upper:.3g}] on {drift.n_samples} samples, "
        f"limit {limit:g}: {_describe(outcome, needed, 'samples')}"
    )
    return _Finding(outcome=outcome, reason=reason, needed_n=needed)


def _compare(lower: float, upper: float, limit: float) -> Outcome:
    if upper < limit:
        return Outcome.PASS
    return Outcome.FAIL if lower > limit else Outcome.INCONCLUSIVE


def _describe(outcome: Outcome, needed: int | None, unit: str) -> str:
    if outcome is Outcome.PASS:
        return "within"
    if outcome is Outcome.FAIL:
        return "exceeded"
    if needed is None:
        return "at the limit itself, which no sample size decides"
    return f"inconclusive, about {needed} {unit} would decide"
