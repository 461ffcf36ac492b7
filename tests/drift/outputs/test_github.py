"""Summaries and workflow commands, read back as GitHub's runner reads them."""

import dataclasses
import html
import re

import pytest
from support.drift_reports import report

from tightfit.drift.gate import Finding, GateDecision, Outcome
from tightfit.drift.outputs.github import (
    MAX_SUMMARY_BYTES,
    annotations,
    publish,
    step_summary,
)

NASTY_NAME = "a|`b` *c* _<i>,:%\r\n::stop-commands::x [l](u).gguf"


def with_findings(*findings, **changes):
    decision = GateDecision(outcome=findings[0].outcome, findings=findings)
    return dataclasses.replace(report(**changes), decision=decision)


def read_command(line):
    """As the runner does: actions/runner, src/Runner.Common/ActionCommand.cs."""
    assert "\n" not in line
    assert "\r" not in line
    assert line.startswith("::")
    end = line.index("::", 2)
    name, _, fields = line[2:end].partition(" ")
    properties = {}
    for field in filter(None, fields.split(",")):
        key, _, value = field.partition("=")
        for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
            value = value.replace(code, character)
        properties[key] = value.replace("%25", "%")
    message = line[end + 2 :].replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
    return name, properties, message


def table_cells(summary):
    """Rows of the table as GitHub splits them: at pipes that no backslash precedes."""
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    return [
        [html.unescape(cell.strip()) for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows
    ]


def test_the_worst_verdict_heads_the_summary() -> None:
    for outcomes, worst in (
        ([Outcome.PASS, Outcome.PASS], "✅ tightfit drift: pass"),
        ([Outcome.PASS, Outcome.INCONCLUSIVE], "⚠️ tightfit drift: inconclusive"),
        ([Outcome.INCONCLUSIVE, Outcome.FAIL, Outcome.PASS], "❌ tightfit drift: fail"),
    ):
        summary = step_summary([report(outcome) for outcome in outcomes])
        assert summary.splitlines()[0] == f"## {worst}"


def test_the_table_has_a_row_an_artifact() -> None:
    header, rule, first, second = table_cells(
        step_summary([report(name="a.gguf"), report(Outcome.FAIL, name="b.onnx", kl=0.5)])
    )
    assert len(header) == len(rule) == len(first) == len(second)
    assert dict(zip(header, first, strict=True)) == {
        "artifact": "a.gguf",
        "verdict": "✅ pass",
        "bits per weight": "4.850",
        "accuracy drop, points [90 %]": "+3.12 [-3.90, +11.20]",
        "mean KL, nats [90 %]": "0.004 [0.0032, 0.0048]",
        "top-1": "98.50%",
        "flips: lost / won": "3 / 1",
    }
    assert second[:2] == ["b.onnx", "❌ fail"]
    assert second[4] == "0.5 [0.4, 0.6]"


def test_what_is_unknown_is_said() -> None:
    unmeasured = dataclasses.replace(
        report(bits_per_weight=None), tokens=None, tokens_absent="no log-probabilities"
    )
    row = table_cells(step_summary([unmeasured]))[2]
    assert [row[2], row[4], row[5]] == ["unknown", "not measured", "not measured"]
    one_trace = dataclasses.replace(report().tokens, kl_interval_nats=None)
    assert "0.004 (one trace)" in step_summary([dataclasses.replace(report(), tokens=one_trace)])


def test_everything_that_was_run_and_how_to_run_it_again() -> None:
    shown = html.unescape(step_summary([report()]))
    for part in (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B at 916b56a44061fd5cd7d6a8fb632557ed4f724f60",
        "64 of math500:n=64,level=4-5, SHA-256 " + "cd" * 32,
        "deepseek: temperature 0.6, top-p 0.95, at most 32768 tokens, answers to each problem: 1,",
        "```sh\ntightfit drift out --baseline r1-distill-qwen-7b --subset math500:n=64\n```",
        "accuracy drop +3.12 points [-3.90, +11.20] on 64 problems, limit 2",
    ):
        assert part in shown
    assert "kept baseline" not in shown
    cached = dataclasses.replace(
        report(), baseline=dataclasses.replace(report().baseline, cached=True)
    )
    assert "kept baseline" in step_summary([cached])


def test_markdown_in_names_is_shown_and_not_obeyed() -> None:
    hostile = dataclasses.replace(report(name=NASTY_NAME), command="echo ```` \n# no heading")
    summary = step_summary([hostile])
    header, _, row = table_cells(summary)
    assert len(row) == len(header)
    assert row[0] == " ".join(NASTY_NAME.split())
    assert "<i>" not in summary
    assert "[l](u)" not in summary
    # The fence is longer than any run of backticks within.
    assert "`````" + "``sh\necho ```` " in summary
    assert "\n# no heading" not in summary


def test_a_commonmark_reader_sees_the_table_and_the_name() -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    page = (
        markdown_it.MarkdownIt("commonmark")
        .enable("table")
        .render(step_summary([report(name=NASTY_NAME)]))
    )
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert len(cells) == 7
    assert cells[0] == " ".join(NASTY_NAME.split())
    assert page.count("<h2>") == page.count("<h3>") == 1


def test_findings_become_errors_and_warnings_and_a_pass_a_notice() -> None:
    lines = annotations(
        [report(Outcome.PASS), report(Outcome.INCONCLUSIVE), report(Outcome.FAIL, name="b.onnx")]
    )
    commands = [read_command(line) for line in lines]
    assert [name for name, _, _ in commands] == ["error", "warning", "notice"]
    _, properties, message = commands[0]
    assert properties == {"title": "tightfit drift: b.onnx: accuracy drop"}
    assert message.startswith("accuracy drop +3.12 points")
    assert commands[2][2].count("\n") == 1


def test_commands_survive_every_special_character() -> None:
    reason = "100 % worse\r\n::error::injected, a:b %0A"
    finding = Finding(figure="mean KL", outcome=Outcome.FAIL, reason=reason)
    (line,) = annotations([with_findings(finding, name=NASTY_NAME)])
    assert read_command(line) == (
        "error",
        {"title": f"tightfit drift: {NASTY_NAME}: mean KL"},
        reason,
    )


def test_publish_appends_to_the_step_summary(tmp_path) -> None:
    path = tmp_path / "summary"
    path.write_text("before\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(path)}
    lines = publish([report(Outcome.FAIL)], environment)
    assert lines == annotations([report(Outcome.FAIL)])
    assert path.read_text(encoding="utf-8") == "before\n" + step_summary([report(Outcome.FAIL)])


@pytest.mark.parametrize("environment", [{}, {"GITHUB_ACTIONS": "false"}])
def test_publish_does_nothing_elsewhere(environment, tmp_path) -> None:
    path = tmp_path / "summary"
    assert publish([report()], {**environment, "GITHUB_STEP_SUMMARY": str(path)}) == []
    assert not path.exists()


def test_publish_without_a_summary_file_gives_the_annotations() -> None:
    assert publish([report()], {"GITHUB_ACTIONS": "true"}) == annotations([report()])


def test_details_that_exceed_the_limit_are_left_out_and_counted(tmp_path) -> None:
    reports = [report(name=f"model-{index}.gguf") for index in range(3)]
    whole = step_summary(reports)
    short = step_summary(reports, max_bytes=len(whole.encode()) - 1)
    assert len(short.encode()) < len(whole.encode())
    assert len(table_cells(short)) == len(table_cells(whole))
    assert "Details of 1 artifacts are left out" in short
    assert "### model-1.gguf" in short
    assert "### model-2.gguf" not in short

    path = tmp_path / "summary"
    path.write_bytes(b"x" * (MAX_SUMMARY_BYTES - 10))
    lines = publish(reports, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(path)})
    assert path.stat().st_size == MAX_SUMMARY_BYTES - 10
    name, _, message = read_command(lines[-1])
    assert (name, message.endswith("is full (1 MiB a step)")) == ("warning", True)


def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path) -> None:
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path)}
    name, _, message = read_command(publish([report()], environment)[-1])
    assert (name, message.startswith("the step summary was not written")) == ("warning", True)
