"""The growth as Markdown: a table, a plot and two sentences each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from benchmarks.growth.results import Growth, Results, Run, growth
from benchmarks.growth.series import Series
from benchmarks.race.machine import machine_line

MB: Final = 1e6
_HEAD: Final = """## Growth

Written by `python -m benchmarks.growth`. One `tightfit export -t cpu-64gb --scheme q4_k_m` of a
checkpoint of random weights a line, each once and in a process of its own, start-up and imports
included, with the cores used as the export does by itself. An exponent is the slope of the
logarithm of time over that of what grows, by least squares over all lines: 1 is linear. Start-up
bends it down, so that of the last two lines stands beside it, and so does the straight line that
fits CPU time best, start-up included, with the largest distance from it. Memory is the largest
resident set of all processes together, and what it is without mapped files, which the system can
drop.
"""
_COLUMNS: Final = ("wall s", "CPU s", "RSS (MB)", "without mapped files (MB)", "scratch (MB)")


def growth_sections(
    series: Mapping[str, Series], results: Results, plot_name: Callable[[str], str]
) -> str:
    """All that was measured so far."""
    parts = [_HEAD, machine_line(results.machine) + "\n"]
    for name, of in series.items():
        runs = results.series(name)
        if not runs:
            continue
        parts.append(f"### {of.title}\n\n{of.what}\n\n{_table(of.unit, runs)}")
        grown = growth(runs)
        if grown is not None:
            parts.append(f"{_sentence(of.unit, grown)}\n")
        parts.append(f"![{of.title}: time and memory]({plot_name(name)})\n")
    return "\n".join(parts)


def summary(name: str, runs: Sequence[Run]) -> str:
    """A line on the largest run of a series, and on the growth up to it."""
    run, grown = runs[-1], growth(runs)
    line = f"{name}: {' | '.join(_cells(run))}"
    return line if grown is None else f"{line}\n{_sentence(name, grown)}"


def _table(unit: str, runs: Sequence[Run]) -> str:
    columns = (unit, *_COLUMNS)
    lines = [f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    lines += [f"| {' | '.join(_cells(run))} |" for run in runs]
    return "\n".join(lines) + "\n"


def _cells(run: Run) -> tuple[str, ...]:
    cost = run.cost
    return (
        f"{run.point.amount:,}",
        f"{cost.wall_s:.1f}",
        f"{cost.cpu_s:.1f}",
        f"{cost.tree_rss_bytes / MB:.0f}",
        f"{cost.tree_bytes / MB:.0f}",
        f"{cost.disk_bytes / MB:.0f}",
    )


def _sentence(unit: str, grown: Growth) -> str:
    line = grown.cpu_line
    return (
        f"Time grows with {unit} to the power {grown.wall_exponent:.2f} (wall), "
        f"{grown.cpu_exponent:.2f} (CPU; the last step {grown.last_cpu_exponent:.2f}). "
        f"CPU s = {line.start:.1f} + {line.slope:.3g} for each of {unit}, "
        f"within {100 * line.worst:.0f} %. "
        f"Peak memory, last over first: {grown.rss_ratio:.2f}, "
        f"without mapped files {grown.anonymous_ratio:.2f}."
    )
