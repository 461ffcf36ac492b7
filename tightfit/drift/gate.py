"""The gate: does the artifact keep what the user asked for, yes, no, or not yet known.

A non-inferiority decision on two figures, each by its two-sided 90 % interval: the accuracy drop
against `max_drop_points` and the mean KL divergence against `max_kl_nats`.

* pass: the whole interval is below the limit, for both;
* fail: the whole interval is above the limit, for one;
* inconclusive: neither, with the number of problems or traces that it would take.

An end of an interval is wrong in at most 5 % of the cases. So a figure that is at its limit or
beyond passes in at most 5 %, and all the more the two together; an artifact whose two figures are
both within fails in at most 10 %. `benchmarks/gate_rates.py` measures both (`docs/drift.md`).

A sequential test decides the accuracy by its evidence instead, with the same two error rates over
all its looks. The interval beside it is of a sample that stopped by itself, and only shown.

No observed drop is not yet a pass: on 64 problems without one flip, 4 points may still be lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.statistics.mean import MIN_TRACES
from tightfit.drift.statistics.needed import needed_problems, needed_traces
from tightfit.drift.statistics.outcome import Outcome as Outcome
from tightfit.drift.statistics.paired import PairedAccuracy

MAX_DROP_POINTS: Final = 2.0
"""Default limit of the accuracy drop, in percentage points."""
MAX_KL_NATS: Final = 0.05
"""Default limit of the mean token-level KL divergence."""
ACCURACY_FIGURE: Final = "accuracy drop"
KL_FIGURE: Final = "mean KL"

EXIT_PASS: Final = 0
EXIT_FAIL: Final = 3
EXIT_INCONCLUSIVE: Final = 5

EXIT_STATUS: Final = {
    Outcome.PASS: EXIT_PASS,
    Outcome.FAIL: EXIT_FAIL,
    Outcome.INCONCLUSIVE: EXIT_INCONCLUSIVE,
}
MAX_TAIL_MASS: Final = 1e-3
"""Of the probability that a comparison may take as one token and still let KL pass: what lies in it
is not measured. Kept distributions leave 1e-6; twenty served tokens of a flat one much more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What may be lost."""

    max_drop_points: float = MAX_DROP_POINTS
    max_kl_nats: float = MAX_KL_NATS


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One figure against its limit."""

    figure: str
    """`accuracy drop` or `mean KL`."""
    outcome: Outcome
    reason: str
    """A sentence with the figure, its interval, the sample and the limit."""
    needed: int | None = None
    """Problems (accuracy) or traces (KL) that would decide, when inconclusive; None when no number
    would."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialStop:
    """How a sequential test ended."""

    looked_at: int
    """Problems whose evidence decided, or all that were answered."""
    available: int
    pass_evidence: float
    """E-value against `the drop is at or above the limit`."""
    fail_evidence: float
    """E-value against `the drop is within the limit`."""
    threshold: float
    """Evidence that decides."""
    needed: int | None = None
    """Problems that would decide, if they went on as those seen (`SequentialTest.needed`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision:
    """The outcome and why."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    sequential: SequentialStop | None = None
    """None when the sample size was fixed beforehand."""

    @property
    def exit_status(self) -> int:
        """Exit status of `tightfit drift`."""
        return EXIT_STATUS[self.outcome]


def worst_exit_status(decisions: Iterable[GateDecision]) -> int:
    """Exit status for several artifacts: failed before inconclusive before passed."""
    statuses = {decision.exit_status for decision in decisions}
    worst_first = (EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS)
    return next(status for status in worst_first if status in statuses)


def decide(
    accuracy: PairedAccuracy,
    tokens: TokenDrift | None,
    limits: Limits,
    *,
    tokens_absent: str = "",
    sequential: SequentialStop | None = None,
) -> GateDecision:
    """Decide on measured accuracy and drift.

    Without `tokens` the verdict rests on accuracy alone, and says so with the reason
    `tokens_absent`. With `sequential` the accuracy is decided by its evidence.
    """
    if sequential is None:
        first = _judge_accuracy(accuracy, limits.max_drop_points)
    else:
        first = _judge_evidence(accuracy, sequential, limits.max_drop_points)
    findings = [first]
    if tokens is not None:
        findings.append(_judge_kl(tokens, limits.max_kl_nats))
    outcomes = {finding.outcome for finding in findings}
    worst_first = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)
    if tokens is None:
        why = f" ({tokens_absent})" if tokens_absent else ""
        alone = f"; mean KL was not measured{why}, so the verdict rests on accuracy alone"
        findings = [
            Finding(
                figure=first.figure,
                outcome=first.outcome,
                reason=first.reason + alone,
                needed=first.needed,
            )
        ]
    return GateDecision(
        outcome=next(outcome for outcome in worst_first if outcome in outcomes),
        findings=tuple(findings),
        sequential=sequential,
    )


def _judge_accuracy(accuracy: PairedAccuracy, limit: float) -> Finding:
    outcome = _compare(accuracy.drop_interval_points, limit)
    needed = needed_problems(accuracy, limit) if outcome is Outcome.INCONCLUSIVE else None
    meaning = _meaning(outcome, needed, "problems")
    return Finding(
        figure=ACCURACY_FIGURE,
        outcome=outcome,
        reason=f"{_drop_sentence(accuracy)}, limit {limit:g}: {meaning}",
        needed=needed,
    )


def _judge_evidence(accuracy: PairedAccuracy, stop: SequentialStop, limit: float) -> Finding:
    needed = None
    if stop.pass_evidence >= stop.threshold:
        outcome, strength = Outcome.PASS, f"evidence {stop.pass_evidence:.3g} of a drop below it"
        meaning = "the sequential test stopped there and passes"
    elif stop.fail_evidence >= stop.threshold:
        outcome, strength = Outcome.FAIL, f"evidence {stop.fail_evidence:.3g} of a drop above it"
        meaning = "the sequential test stopped there and fails"
    else:
        outcome, needed = Outcome.INCONCLUSIVE, stop.needed
        strength = (
            f"evidence {stop.pass_evidence:.3g} of a drop below it and {stop.fail_evidence:.3g} "
            "of one above"
        )
        meaning = f"the sequential test is undecided; {_what_would(needed, 'problems')}"
    return Finding(
        figure=ACCURACY_FIGURE,
        outcome=outcome,
        reason=f"{_drop_sentence(accuracy)}, limit {limit:g}: after {stop.looked_at} of "
        f"{stop.available} problems {strength}, where {stop.threshold:g} decides: {meaning}",
        needed=needed,
    )


def _judge_kl(tokens: TokenDrift, limit: float) -> Finding:
    mean, interval, n = tokens.kl_mean_nats, tokens.kl_interval_nats, tokens.n_samples
    shown = f"mean KL {mean:.3g} nats"
    if interval is None or tokens.kl_mean_stderr_nats is None or n < MIN_TRACES:
        return Finding(
            figure=KL_FIGURE,
            outcome=Outcome.INCONCLUSIVE,
            reason=f"{shown} on {_count(n, 'trace')}, limit {limit:g}: the error of a mean over so "
            f"few traces is not known; {MIN_TRACES} traces are the least that can decide",
            needed=MIN_TRACES,
        )
    outcome = _compare(interval, limit)
    if outcome is Outcome.PASS and tokens.tail_mass > MAX_TAIL_MASS:
        return Finding(
            figure=KL_FIGURE,
            outcome=Outcome.INCONCLUSIVE,
            reason=f"{shown} at least, on {_count(n, 'trace')}, limit {limit:g}: the runtime tells "
            f"too few tokens of a position, {tokens.tail_mass:.2%} of the probability is unseen "
            f"and {MAX_TAIL_MASS:.2%} are allowed",
        )
    needed = None
    if outcome is Outcome.INCONCLUSIVE:
        needed = needed_traces(mean, tokens.kl_mean_stderr_nats, interval, n, limit)
    return Finding(
        figure=KL_FIGURE,
        outcome=outcome,
        reason=f"{shown}, 90 % interval {interval[0]:.3g} to {interval[1]:.3g}, on "
        f"{_count(n, 'trace')}, limit {limit:g}: {_meaning(outcome, needed, 'traces')}",
        needed=needed,
    )


def _compare(interval: tuple[float, float], limit: float) -> Outcome:
    lower, upper = interval
    if upper < limit:
        return Outcome.PASS
    return Outcome.FAIL if lower > limit else Outcome.INCONCLUSIVE


def _drop_sentence(accuracy: PairedAccuracy) -> str:
    lower, upper = accuracy.drop_interval_points
    answers = f" of {accuracy.samples} answers each" if accuracy.samples > 1 else ""
    return (
        f"accuracy drop {accuracy.drop_points:+.2f} points, 90 % interval {lower:+.2f} to "
        f"{upper:+.2f}, on {_count(accuracy.n, 'problem')}{answers}"
    )


def _meaning(outcome: Outcome, needed: int | None, unit: str) -> str:
    if outcome is Outcome.PASS:
        return "the whole interval is within it"
    if outcome is Outcome.FAIL:
        return "the whole interval exceeds it"
    return f"the interval reaches over it, so this is inconclusive; {_what_would(needed, unit)}"


def _what_would(needed: int | None, unit: str) -> str:
    if needed is None:
        return f"the figure is at the limit itself, which no number of {unit} decides"
    return f"about {needed} {unit} would decide"


def _count(n: int, unit: str) -> str:
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"
