"""What GitHub Actions shows of a drift report: the step summary and annotations.

* The summary is GitHub-flavoured Markdown that a step appends to the file named by
  `GITHUB_STEP_SUMMARY`. GitHub drops a summary above 1 MiB a step as a whole, so details that would
  exceed it are left out, and the summary says how many.
* An annotation is a workflow command, a line on stdout: `::error title=...::message`. GitHub shows
  ten of a kind a step; findings that did not pass come first.

Escaping of commands is the toolkit's (actions/toolkit, packages/core/src/command.ts): `%`, CR and
LF in messages, `:` and `,` as well in properties. In Markdown, what would format is written as
character references, which cannot start a structure (CommonMark, section 2.5).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tightfit.drift.gate import EXIT_STATUS, Outcome, worst_exit_status
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.protocol import Protocol
from tightfit.drift.report import DriftReport

MAX_SUMMARY_BYTES: Final = 2**20
"""GitHub's limit for one step."""
SUMMARY_VARIABLE: Final = "GITHUB_STEP_SUMMARY"

_MARKS: Final = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "⚠️"}
_COMMANDS: Final = {
    Outcome.PASS: "notice",
    Outcome.FAIL: "error",
    Outcome.INCONCLUSIVE: "warning",
}
_MARKDOWN: Final = re.compile(r"[&<>\\`*_{}\[\]#|~$!@]")
_COLUMNS: Final = (
    "artifact",
    "verdict",
    "bits per weight",
    "accuracy drop, points [90 %]",
    "mean KL, nats [90 %]",
    "top-1",
    "flips: lost / won",
)
_OMITTED_BYTES: Final = 200
"""Room for the sentence that says what was left out."""


def step_summary(reports: Sequence[DriftReport], *, max_bytes: int = MAX_SUMMARY_BYTES) -> str:
    """The reports as Markdown of at most `max_bytes`; empty when not even the table fits."""
    parts = [_overview(reports), *(_details(report) for report in reports)]
    sizes = [len(part.encode(errors="replace")) for part in parts]
    if sum(sizes) > max_bytes:
        room = max_bytes - _OMITTED_BYTES
        kept = next((n for n in reversed(range(len(parts))) if sum(sizes[:n]) <= room), 0)
        if kept == 0:
            return ""
        note = f"Details of {len(parts) - kept} artifacts are left out: GitHub shows 1 MiB a step."
        parts = [*parts[:kept], note + "\n\n"]
    return "".join(parts)


def annotations(reports: Sequence[DriftReport]) -> list[str]:
    """Workflow commands: errors and warnings a finding, a notice an artifact that passed."""
    ordered = (Outcome.FAIL, Outcome.INCONCLUSIVE)
    lines = [
        _command(outcome, report, finding.figure, finding.reason)
        for outcome in ordered
        for report in reports
        for finding in report.decision.findings
        if finding.outcome is outcome
    ]
    lines += [
        _command(
            Outcome.PASS,
            report,
            "pass",
            "\n".join(finding.reason for finding in report.decision.findings),
        )
        for report in reports
        if report.decision.outcome is Outcome.PASS
    ]
    return lines


def publish(reports: Sequence[DriftReport], environment: Mapping[str, str]) -> list[str]:
    """Append the summary to the step's file and return the lines to print.

    Outside GitHub Actions (`GITHUB_ACTIONS` is not `true`) nothing happens. A summary that cannot
    be written becomes a warning among the lines: the verdict matters more.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    lines = annotations(reports)
    name = environment.get(SUMMARY_VARIABLE)
    if not name:
        return lines
    path = Path(name)
    try:
        taken = path.stat().st_size if path.exists() else 0
        summary = step_summary(reports, max_bytes=MAX_SUMMARY_BYTES - taken)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(summary)
    except OSError as error:
        return [*lines, _warning(f"the step summary was not written: {error}")]
    if not summary:
        lines.append(_warning(f"the step summary was not written: {name} is full (1 MiB a step)"))
    return lines


def _overview(reports: Sequence[DriftReport]) -> str:
    worst = worst_exit_status(report.decision for report in reports)
    (outcome,) = (outcome for outcome, status in EXIT_STATUS.items() if status == worst)
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(report) for report in reports)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"## {_MARKS[outcome]} tightfit drift: {outcome.value}\n\n{table}\n\n"


def _row(report: DriftReport) -> tuple[str, ...]:
    accuracy, outcome = report.accuracy, report.decision.outcome
    bits = report.artifact.bits_per_weight
    low, high = accuracy.drop_interval_points
    return (
        _text(report.artifact.name),
        f"{_MARKS[outcome]} {outcome.value}",
        "unknown" if bits is None else f"{bits:.3f}",
        f"{accuracy.drop_points:+.2f} [{low:+.2f}, {high:+.2f}]",
        "not measured" if report.tokens is None else _mean_kl(report.tokens),
        "not measured" if report.tokens is None else f"{report.tokens.top1_agreement:.2%}",
        f"{accuracy.baseline_only} / {accuracy.artifact_only}",
    )


def _mean_kl(tokens: TokenDrift) -> str:
    mean = f"{tokens.kl_mean_nats:.3g}"
    if tokens.kl_interval_nats is None:
        return f"{mean} (one trace)"
    low, high = tokens.kl_interval_nats
    return f"{mean} [{low:.3g}, {high:.3g}]"


def _details(report: DriftReport) -> str:
    fence = "`" * (3 + _longest_run(report.command, "`"))
    return "\n".join(
        [
            f"### {_text(report.artifact.name)}",
            "",
            *(
                f"- {_MARKS[finding.outcome]} {_text(finding.reason)}"
                for finding in report.decision.findings
            ),
            "",
            "<details><summary>What was run</summary>",
            "",
            *(f"- {name}: {_text(value)}" for name, value in _what_was_run(report)),
            "",
            "</details>",
            "",
            "Run it again:",
            "",
            fence + "sh",
            " ".join(report.command.splitlines()),
            fence,
            "",
            "",
        ]
    )


def _what_was_run(report: DriftReport) -> Iterator[tuple[str, str]]:
    baseline, data = report.baseline, report.data
    artifact, runtime, limits = report.artifact, report.runtime, report.limits
    revision = f" at {baseline.revision}" if baseline.revision else ""
    kept = ", from a kept baseline" if baseline.cached else ""
    yield "baseline", f"{baseline.id}{revision} in {baseline.runtime}{kept}"
    yield "artifact", f"{artifact.format} in {runtime.label} on {runtime.device}"
    yield "problems", f"{data.n_problems} of {data.subset}, SHA-256 {data.sha256}"
    yield "protocol", _protocol(report.protocol)
    drop, kl = f"{limits.max_drop_points:g} points", f"{limits.max_kl_nats:g} nats"
    yield "limits", f"accuracy drop {drop}, mean KL {kl}"
    definitions = ", ".join(f"{name} {number}" for name, number in sorted(report.versions.items()))
    yield "tightfit", f"{report.tightfit_version}; definitions: {definitions}"


def _protocol(protocol: Protocol) -> str:
    return (
        f"{protocol.name}: temperature {protocol.temperature:g}, top-p {protocol.top_p:g}, at most "
        f"{protocol.max_tokens} tokens, answers to each problem: {protocol.samples}, "
        f"seed {protocol.seed}"
    )


def _command(outcome: Outcome, report: DriftReport, figure: str, message: str) -> str:
    title = f"tightfit drift: {report.artifact.name}: {figure}"
    return f"::{_COMMANDS[outcome]} title={_property(title)}::{_data(message)}"


def _warning(message: str) -> str:
    return f"::warning title=tightfit drift::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _text(text: str) -> str:
    """`text` on one line, shown as it is."""
    one_line = " ".join(text.split())
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", one_line)


def _longest_run(text: str, character: str) -> int:
    return max((len(run) for run in re.findall(f"{character}+", text)), default=0)
