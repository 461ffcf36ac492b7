"""The only place that prints: data on stdout, progress and warnings on stderr.

With `--json` stdout carries one JSON document, for results and for errors alike.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is imported where it is needed: `--json` and `--help` do without
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

from tightfit.reporter import Progress

_PLAIN_WIDTH = 140
"""Columns of a table that is piped or logged, where no terminal tells its width."""
_PLAIN_LINES = 10
"""Lines that a bar prints in all where there is no terminal."""
_LEAST_INTERVAL_S = 1.0
"""Between two such lines: what is over in a second needs none."""


def emit(document: Mapping[str, Any], *renderables: "RenderableType", as_json: bool) -> None:
    """Print a result on stdout, as JSON or for people."""
    if as_json:
        _print_json(document)
        return
    console = _console(stderr=False)
    for renderable in renderables:
        console.print(renderable)


def emit_error(lines: Sequence[str], document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print an error: sentences on stderr, and with `--json` also the document on stdout."""
    for line in lines:
        sys.stderr.write(line + "\n")
    if as_json:
        # A full disk or a closed pipe may be the very error; it has been told on stderr.
        with contextlib.suppress(OSError):
            _print_json({"error": document})


def emit_text(text: str) -> None:
    """Print text that is data as it is: nothing is wrapped."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def emit_lines(lines: Sequence[str]) -> None:
    """Print lines on stderr, beside the data: what a CI service reads in the log."""
    for line in lines:
        sys.stderr.write(line + "\n")


def _print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(plain(document), indent=2, ensure_ascii=False) + "\n")
    # Now, while a full disk or a closed pipe can still become an exit status.
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """The value with NaN and infinities, which JSON lacks, as None, and paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> "RenderableType":
    """A table whose first `left` columns are text and the others numbers, aligned right."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


class StderrReporter:
    """Progress on stderr: a bar with an ETA on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._started_s = time.monotonic()

    def stage(self, name: str) -> None:
        """Name the stage that begins, with the time since the start."""
        self._console.print(f"[{_clock(time.monotonic() - self._started_s)}] {name}")

    def info(self, text: str) -> None:
        """Print a fact."""
        self._console.print(f"        {text}")

    def warning(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {text}", style="yellow")

    @contextmanager
    def progress(self, total: int, description: str, /) -> Iterator[Progress]:
        """A bar, or a line at each tenth of the way."""
        if not self._console.is_terminal:
            yield _PlainProgress(self._console, total, description)
            return
        with _rich_bar(self._console) as bar:
            yield _BarProgress(bar, bar.add_task(description, total=total))


class _BarProgress:
    def __init__(self, bar: "RichBar", task: "TaskID") -> None:
        self._bar = bar
        self._task = task

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)


class _PlainProgress:
    def __init__(self, console: "Console", total: int, description: str) -> None:
        self._console = console
        self._total = total
        self._description = description
        self._done = 0
        self._started_s = self._printed_s = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Print a line when another tenth is done."""
        before = self._done * _PLAIN_LINES // max(self._total, 1)
        self._done += steps
        now_s = time.monotonic()
        is_tenth = self._done * _PLAIN_LINES // max(self._total, 1) > before
        if not is_tenth or now_s - self._printed_s < _LEAST_INTERVAL_S:
            return
        self._printed_s = now_s
        spent_s = now_s - self._started_s
        left_s = spent_s * (self._total - self._done) / self._done
        self._console.print(
            f"        {self._description}: {self._done}/{self._total}, "
            f"{_clock(spent_s)} spent, {_clock(left_s)} left"
        )


def _rich_bar(console: "Console") -> "RichBar":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichBar

    return RichBar(
        TextColumn("        {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:d}:{rest:02d}"
