"""The verdicts in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tightfit.drift.gate import KL_FIGURE, Finding, Outcome, SequentialStop
from tightfit.drift.page import numerals
from tightfit.drift.page.table import artifact_names
from tightfit.drift.report import DriftReport

SYMBOLS: Final = {Outcome.PASS: "✓", Outcome.FAIL: "✕", Outcome.INCONCLUSIVE: "?"}
"""Told apart without colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One artifact's."""

    name: str
    outcome: str
    """Also its class in the style sheet."""
    symbol: str
    reasons: tuple[str, ...]
    needs: tuple[str, ...]
    """What it would take to know, when inconclusive."""


def verdicts(reports: Sequence[DriftReport]) -> tuple[Verdict, ...]:
    """In the order of the reports."""
    return tuple(
        _verdict(name, report)
        for name, report in zip(artifact_names(reports), reports, strict=True)
    )


def _verdict(name: str, report: DriftReport) -> Verdict:
    decision = report.decision
    reasons = [_sentence(finding.reason) for finding in decision.findings]
    if decision.sequential is not None:
        reasons.append(_stop(decision.sequential))
    if report.tokens is None:
        reasons.append(_sentence(f"token-level drift was not measured: {report.tokens_absent}"))
    undecided = [each for each in decision.findings if each.outcome is Outcome.INCONCLUSIVE]
    return Verdict(
        name=name,
        outcome=decision.outcome.value,
        symbol=SYMBOLS[decision.outcome],
        reasons=tuple(reasons),
        needs=tuple(_need(finding, report) for finding in undecided),
    )


def _need(finding: Finding, report: DriftReport) -> str:
    if finding.needed is None:
        return f"No sample size would decide the {finding.figure}."
    unit, had = "problems", report.accuracy.n
    if finding.figure == KL_FIGURE:
        unit, had = "traces", report.tokens.n_samples if report.tokens else 0
    return (
        f"About {numerals.count(finding.needed)} {unit} would decide the {finding.figure}; "
        f"this run had {numerals.count(had)}."
    )


def _stop(stop: SequentialStop) -> str:
    pass_evidence, fail_evidence, threshold = (
        numerals.number(value) for value in (stop.pass_evidence, stop.fail_evidence, stop.threshold)
    )
    return (
        f"The sequential test looked at {numerals.count(stop.looked_at)} of "
        f"{numerals.count(stop.available)} problems: evidence {pass_evidence} for a pass and "
        f"{fail_evidence} for a fail, {threshold} decides."
    )


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
