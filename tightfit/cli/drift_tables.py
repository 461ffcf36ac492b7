"""Drift reports for people at a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tightfit.cli.output import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.drift.measures.reasoning import ReasoningHealth
    from tightfit.drift.measures.tokens import TokenDrift
    from tightfit.drift.report import DriftReport
    from tightfit.drift.statistics.paired import PairedAccuracy

_PERCENT = 100


def render_drift(reports: "Sequence[DriftReport]") -> "list[RenderableType]":
    """The reports of one run: everything of a single artifact, a row for each of several."""
    if len(reports) == 1:
        return _render_single(reports[0])
    lines = []
    for report in reports:
        lines.append(f"{report.artifact.format}: {report.artifact.name} in {report.runtime.label}")
        lines += _reasons(report)
    return [render_comparison(reports), *lines]


def render_comparison(reports: "Sequence[DriftReport]") -> "RenderableType":
    """A row for each artifact: bits per weight, problems, accuracies, drift."""
    first = reports[0]
    title = f"problems of {first.data.subset}, {first.protocol.name}; baseline {first.baseline.id}"
    rows = [
        [
            report.artifact.name,
            "" if (bits := report.artifact.bits_per_weight) is None else f"{bits:.2f}",
            str(report.accuracy.n),
            f"{report.accuracy.baseline_accuracy:.1%}",
            f"{report.accuracy.artifact_accuracy:.1%}",
            _short_drop(report.accuracy),
            _short_kl(report.tokens),
            "" if report.tokens is None else f"{report.tokens.top1_agreement:.2%}",
            report.decision.outcome.upper(),
        ]
        for report in reports
    ]
    accuracies = ("n", "baseline", "accuracy", "drop, points")
    columns = ("artifact", "bits", *accuracies, "mean KL, nats", "top-1", "verdict")
    return table(title, columns, rows)


def _render_single(report: "DriftReport") -> "list[RenderableType]":
    """Both models side by side, then the distance, then the verdict."""
    title = (
        f"{report.artifact.name} in {report.runtime.label}, {report.accuracy.n} problems of "
        f"{report.data.subset}, {report.protocol.name}"
    )
    return [
        table(title, ("", f"baseline {report.baseline.id}", "artifact"), _side_by_side(report)),
        table("", ("drift", ""), _distance(report)),
        f"{report.decision.outcome.upper()}",
        *_reasons(report),
    ]


def _side_by_side(report: "DriftReport") -> list[list[str]]:
    accuracy, tokens, reasoning = report.accuracy, report.tokens, report.reasoning
    rows = [
        [
            "accuracy",
            _share(accuracy.baseline_accuracy, accuracy.baseline_interval),
            _share(accuracy.artifact_accuracy, accuracy.artifact_interval),
        ]
    ]
    if tokens is not None:
        perplexities = tokens.baseline_perplexity, tokens.artifact_perplexity
        rows.append(["perplexity", *(f"{value:.4f}" for value in perplexities)])
    rows += [
        [f"answers: {grade.replace('_', ' ')}", str(count), str(report.artifact_grades[grade])]
        for grade, count in report.baseline_grades.items()
    ]
    healths = zip(_health(reasoning.baseline), _health(reasoning.artifact), strict=True)
    return rows + [[name, before, after] for (name, before), (_, after) in healths]


def _health(health: "ReasoningHealth") -> list[tuple[str, str]]:
    return [
        ("thoughts never closed", f"{health.unclosed:.1%}"),
        ("answers that loop", f"{health.looping:.1%}"),
        ("repeated n-grams", f"{health.repetition:.1%}"),
        ("language mixing", f"{health.mixing:.1%}"),
        ("mean tokens", f"{health.mean_tokens:.0f}"),
    ]


def _distance(report: "DriftReport") -> list[list[str]]:
    accuracy, tokens, floor = report.accuracy, report.tokens, report.noise_floor
    rows = []
    if tokens is not None:
        rows += [
            ["KL mean", _kl(tokens)],
            ["KL of the runtime alone", _kl(floor)],
            ["KL median", _nats(tokens.kl_median_nats)],
            ["KL 99 %", _nats(tokens.kl_p99_nats)],
            ["KL maximum", _nats(tokens.kl_max_nats)],
            ["top-1 agreement", f"{tokens.top1_agreement:.2%}"],
        ]
        if tokens.confident is not None:
            rows.append(["KL where the baseline is sure", _nats(tokens.confident.kl_mean_nats)])
    rows += [
        ["accuracy drop", _drop(accuracy)],
        [
            "problems that flipped",
            (
                f"{accuracy.baseline_only} lost, {accuracy.artifact_only} won "
                f"(McNemar p {accuracy.mcnemar_p:.2g})"
            ),
        ],
    ]
    ratio, interval = report.reasoning.length_ratio, report.reasoning.length_ratio_interval
    if ratio is not None:
        bounds = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        rows.append(["length of answers, ratio", f"{ratio:.3f}{bounds}"])
    return rows


def _reasons(report: "DriftReport") -> list[str]:
    return [f"  {finding.reason}" for finding in report.decision.findings]


def _share(accuracy: float, interval: tuple[float, float]) -> str:
    low, high = (bound * _PERCENT for bound in interval)
    return f"{accuracy:.1%} [{low:.1f}, {high:.1f}]"


def _drop(accuracy: "PairedAccuracy") -> str:
    low, high = accuracy.drop_interval_points
    return f"{accuracy.drop_points:+.2f} points [{low:+.2f}, {high:+.2f}]"


def _short_drop(accuracy: "PairedAccuracy") -> str:
    low, high = accuracy.drop_interval_points
    return f"{accuracy.drop_points:+.2f} [{low:+.2f}, {high:+.2f}]"


def _kl(tokens: "TokenDrift | None") -> str:
    if tokens is None:
        return "not measured"
    interval = tokens.kl_interval_nats
    bounds = "" if interval is None else f" [{interval[0]:.2e}, {interval[1]:.2e}]"
    return f"{_nats(tokens.kl_mean_nats)}{bounds}"


def _short_kl(tokens: "TokenDrift | None") -> str:
    if tokens is None:
        return "not measured"
    interval = tokens.kl_interval_nats
    bounds = "" if interval is None else f" [{interval[0]:.1e}, {interval[1]:.1e}]"
    return f"{tokens.kl_mean_nats:.1e}{bounds}"


def _nats(value: float) -> str:
    return f"{value:.2e} nats"
