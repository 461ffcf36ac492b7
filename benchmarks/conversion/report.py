"""The conversions as Markdown: a table of time and a table of memory, disk and error each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from benchmarks.conversion.checkpoints import FULL
from benchmarks.conversion.results import OURS, THEIRS, Results, Run
from benchmarks.race.machine import machine_line
from benchmarks.race.spread import median, spread

GB: Final = 1e9
BILLION: Final = 1e9
_HEAD: Final = """## Conversion to GGUF without calibration

Written by `python -m benchmarks conversion`. A checkpoint of random weights becomes a GGUF, without
an importance matrix: ours by one `tightfit export -t cpu-64gb --calib none --method rtn`, theirs by
llama.cpp's converter to BF16 and llama-quantize on its file (through llama-cpp-python), in turn, a
process of its own each with all cores, imports included. A figure is the median of the rounds, with
the smallest and the largest behind it. The converter ran once a round; its time is in that of every
file type. Memory is the largest resident set of all processes together; what it is without mapped
files, which the system can drop, stands behind it. Scratch is what lay on disk beside the file. The
error is the relative squared error of the dequantized weights against the checkpoint's, on the same
sample of tensors, read by `gguf`.
"""
_TIME: Final = (
    "type",
    "tightfit, CPU s",
    "llama.cpp, CPU s",
    "of it convert",
    "llama.cpp ÷ tightfit",
    "tightfit, wall s",
    "llama.cpp, wall s",
    "llama.cpp ÷ tightfit, wall",
)
_REST: Final = (
    "type",
    "tightfit, RSS (GB)",
    "llama.cpp, RSS (GB)",
    "tightfit, scratch (GB)",
    "llama.cpp, scratch (GB)",
    "tightfit, file (GB)",
    "llama.cpp, file (GB)",
    "tightfit, error",
    "llama.cpp, error",
)
_NONE: Final = "-"
Row = Callable[[Sequence[Run], Sequence[Run]], tuple[str, ...]]
"""Cells from the runs of ours and of llama.cpp, which may be none."""


def conversion_sections(results: Results) -> str:
    """All that was measured so far."""
    parts = [_HEAD, machine_line(results.machine) + "\n"]
    if results.skipped:
        parts.append(f"Skipped: {', '.join(results.skipped)}.\n")
    for model, count in results.n_weights.items():
        runs = [run for run in results.runs if run.model == model]
        if runs:
            title = f"### {FULL[model].title}, {count / BILLION:.2f} billion weights"
            parts += [title + "\n", _table(_TIME, runs, _time), _table(_REST, runs, _rest)]
    return "\n".join(parts)


def _table(columns: Sequence[str], runs: Sequence[Run], row: Row) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for scheme in dict.fromkeys(run.scheme for run in runs):
        own = [run for run in runs if run.scheme == scheme]
        ours = [run for run in own if run.maker == OURS]
        cells = row(ours, [run for run in own if run.maker == THEIRS])
        lines.append(f"| {' | '.join((scheme, *cells))} |")
    return "\n".join(lines) + "\n"


def _time(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[str, ...]:
    cpu_s, wall_s = ([run.cpu_s for run in ours], [run.wall_s for run in ours])
    their_cpu_s, their_wall_s = ([run.cpu_s for run in theirs], [run.wall_s for run in theirs])
    return (
        _spread(cpu_s),
        _spread(their_cpu_s),
        _spread(run.convert_cpu_s for run in theirs),
        _ratio(their_cpu_s, cpu_s),
        _spread(wall_s),
        _spread(their_wall_s),
        _ratio(their_wall_s, wall_s),
    )


def _rest(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[str, ...]:
    def both(text: Callable[[Sequence[Run]], str]) -> tuple[str, str]:
        return text(ours), text(theirs)

    return (
        *both(_memory),
        *both(lambda runs: _spread((run.scratch_bytes / GB for run in runs), 2)),
        *both(lambda runs: _spread((run.file_bytes / GB for run in runs), 3)),
        *both(lambda runs: f"{median(run.error for run in runs):.3e}" if runs else _NONE),
    )


def _memory(runs: Sequence[Run]) -> str:
    if not runs:
        return _NONE
    resident, held = (
        median(getattr(run, name) for run in runs) / GB for name in ("rss_bytes", "anonymous_bytes")
    )
    return f"{resident:.2f} ({held:.2f})"


def _spread(values: Iterable[float], digits: int = 1) -> str:
    seen = list(values)
    return spread(seen, digits) if seen else _NONE


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    return f"{median(theirs) / median(ours):.2f}" if theirs and ours else _NONE
