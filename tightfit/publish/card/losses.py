"""What the artifacts lost: a table for each set of measurements that were taken alike."""

from collections.abc import Callable
from dataclasses import dataclass

from tightfit.drift.gate import Outcome
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.protocol import Protocol
from tightfit.drift.report import DriftReport
from tightfit.export.manifest import Artifact
from tightfit.publish.card import numerals
from tightfit.publish.card.layout import label
from tightfit.publish.card.results import Drift

_HASH_SHOWN = 16
_NONE = "-"
_Row = tuple[str, ...]
_Cell = Callable[[DriftReport], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTable:
    """Measures in rows; the baseline and the artifacts in columns."""

    header: _Row
    rows: tuple[_Row, ...]
    baseline_id: str
    conditions: tuple[str, ...]
    """Sentences: what was compared with what, on what, how."""
    remarks: tuple[str, ...]
    """What a figure or an outcome needs said beside it."""


def loss_tables(drift: Drift) -> tuple[LossTable, ...]:
    """One table a set of reports with the same baseline, problems, protocol and limits."""
    groups: dict[tuple[object, ...], list[tuple[Artifact, DriftReport]]] = {}
    for artifact, report in drift.measured:
        tokens = report.tokens
        key = (
            report.baseline.id,
            report.baseline.revision,
            report.baseline.content_sha256,
            report.baseline.logits,
            report.data,
            report.protocol,
            report.limits,
            tokens and (tokens.n_samples, tokens.n_tokens),
            report.accuracy.baseline_accuracy,
        )
        groups.setdefault(key, []).append((artifact, report))
    return tuple(map(_table, groups.values()))


def _table(group: list[tuple[Artifact, DriftReport]]) -> LossTable:
    reports = [report for _, report in group]
    first = reports[0]
    return LossTable(
        header=("", "original", *(label(artifact) for artifact, _ in group)),
        rows=tuple(_rows(reports)),
        baseline_id=first.baseline.id,
        conditions=tuple(_conditions(first)),
        remarks=tuple(
            f"{label(artifact)}: {remark}"
            for artifact, report in group
            for remark in _remarks(report)
        ),
    )


def _rows(reports: list[DriftReport]) -> list[_Row]:
    first = reports[0]
    rows: list[_Row] = []

    def add(name: str, baseline: str, cell: _Cell) -> None:
        cells = [cell(report) for report in reports]
        if any(each != _NONE for each in cells):
            rows.append((name, baseline, *cells))

    add("mean KL divergence, nats", "", lambda report: _tokens(report.tokens, _kl))
    add("of it llama.cpp's arithmetic", "", _floor)
    add("same most probable token", "", lambda report: _tokens(report.tokens, _top1))
    add(
        "perplexity",
        _tokens(first.tokens, lambda tokens: f"{tokens.baseline_perplexity:.4f}"),
        lambda report: _tokens(report.tokens, lambda tokens: f"{tokens.artifact_perplexity:.4f}"),
    )
    accuracy = first.accuracy
    add(
        "accuracy",
        _accuracy(accuracy.baseline_accuracy, accuracy.baseline_interval),
        lambda report: _accuracy(
            report.accuracy.artifact_accuracy, report.accuracy.artifact_interval
        ),
    )
    add("accuracy drop, points", "", _drop)
    add("problems lost, won", "", _flips)
    add("gate", "", lambda report: report.decision.outcome.value)
    return rows


def _tokens(tokens: TokenDrift | None, cell: Callable[[TokenDrift], str]) -> str:
    return _NONE if tokens is None else cell(tokens)


def _kl(tokens: TokenDrift) -> str:
    return numerals.small(tokens.kl_mean_nats, tokens.kl_interval_nats)


def _floor(report: DriftReport) -> str:
    """The unquantized model in llama.cpp: it says nothing of another runtime."""
    return _tokens(report.noise_floor, _kl) if report.artifact.format == "gguf" else _NONE


def _top1(tokens: TokenDrift) -> str:
    return numerals.share(tokens.top1_agreement, 2)


def _accuracy(value: float, bounds: tuple[float, float]) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in bounds)
    return numerals.share(value) + numerals.interval(low, high)


def _drop(report: DriftReport) -> str:
    low, high = (f"{bound:+.2f}" for bound in report.accuracy.drop_interval_points)
    return f"{report.accuracy.drop_points:+.2f}{numerals.interval(low, high)}"


def _flips(report: DriftReport) -> str:
    return f"{report.accuracy.baseline_only}, {report.accuracy.artifact_only}"


def _conditions(report: DriftReport) -> list[str]:
    baseline, data, limits = report.baseline, report.data, report.limits
    at = f" at revision {baseline.revision}" if baseline.revision else ""
    compared = (
        f"Compared with {baseline.id}{at}: answers by {baseline.runtime}, log-probabilities by "
        f"{baseline.logits}."
    )
    problems = (
        f"Problems: {data.n_problems} of {report.data.subset} (SHA-256 "
        f"{data.sha256[:_HASH_SHOWN]}...)."
    )
    read = [] if report.tokens is None else [_read(report.tokens)]
    legend = (
        "In parentheses: two-sided 90 % intervals. Problems lost: only the original solves them; "
        "won: only the artifact."
    )
    gate = (
        f"The gate passes when the whole interval of the drop is below {limits.max_drop_points:g} "
        f"points and that of the KL divergence below {limits.max_kl_nats:g} nats."
    )
    return [compared, problems, _protocol(report.protocol), *read, legend, gate]


def _read(tokens: TokenDrift) -> str:
    return (
        f"KL divergence, most probable token and perplexity: over {tokens.n_tokens} tokens of "
        f"{numerals.count(tokens.n_samples, 'answer')} of the original, which both models read."
    )


def _protocol(protocol: Protocol) -> str:
    sampled = (
        "greedy decoding"
        if protocol.temperature == 0
        else f"temperature {protocol.temperature:g}, top-p {protocol.top_p:g}"
    )
    opening = protocol.forced_opening.strip()
    return (
        f"Protocol: {sampled}, {numerals.count(protocol.samples, 'answer')} a "
        f"problem, at most {protocol.max_tokens} tokens, seed {protocol.seed}, no system prompt"
        + (f", every answer begun with {opening}." if opening else ".")
    )


def _remarks(report: DriftReport) -> list[str]:
    remarks = [
        finding.reason
        for finding in report.decision.findings
        if finding.outcome is not Outcome.PASS
    ]
    stop = report.decision.sequential
    if stop is not None:
        remarks.append(
            f"a sequential test, which looked at {stop.looked_at} of {stop.available} problems"
        )
    if report.tokens is None:
        why = f": {report.tokens_absent}" if report.tokens_absent else ""
        remarks.append(f"token-level drift was not measured{why}")
    return remarks
