"""The sink: what goes to stdout, what to stderr, and how progress looks in a log."""

import json

import pytest

from tightfit.cli import output
from tightfit.cli.options import parse_size
from tightfit.cli.output import StderrReporter, emit, table
from tightfit.errors import UsageError


def test_json_has_no_nan_and_no_foreign_types(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    emit({"kl": float("nan"), "path": tmp_path, "pair": (1, 2.5), "none": None}, as_json=True)
    shown = capsys.readouterr().out
    assert json.loads(shown, parse_constant=pytest.fail) == {
        "kl": None,
        "path": str(tmp_path),
        "pair": [1, 2.5],
        "none": None,
    }


def test_tables_do_not_interpret_markup(capsys: pytest.CaptureFixture[str]) -> None:
    emit({}, table("", ("name", "value"), [["[bold]x[/bold]", ":smile: [1, 2]"]]), as_json=False)
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert ":smile: [1, 2]" in shown


def test_progress_in_a_log_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter(range(10_000))
    monkeypatch.setattr(output.time, "monotonic", lambda: float(next(now_s)))
    reporter = StderrReporter()
    reporter.stage("Quantizing")
    with reporter.progress(100, "blocks") as progress:
        for _ in range(100):
            progress.advance()
    reporter.info("a fact")
    reporter.warning("a warning")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0].endswith("] Quantizing")
    bars = [line.split()[1] for line in lines if "blocks:" in line]
    assert bars == [f"{done}/100," for done in range(10, 101, 10)]
    assert "left" in lines[1]
    assert lines[-2:] == ["        a fact", "warning: a warning"]
    assert "\x1b" not in shown.err


def test_eta_is_proportional(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    with StderrReporter().progress(4, "blocks") as progress:
        clock[0] = 60.0
        progress.advance()
    assert "1/4, 1:00 spent, 3:00 left" in capsys.readouterr().err


def test_fast_phases_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StderrReporter().progress(1000, "tensors") as progress:
        for _ in range(1000):
            progress.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4G", 4 * 10**9), ("500M", 5 * 10**8), ("7k", 7000), ("1GB", 10**9), ("4096B", 4096)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text, "--split-max-size") == n_bytes


@pytest.mark.parametrize("text", ["", "4", "G", "0G", "-1G", "1.5G", "4T"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--split-max-size"):
        parse_size(text, "--split-max-size")
