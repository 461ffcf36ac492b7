"""The race as Markdown."""

from collections.abc import Iterator
from typing import Final

from benchmarks.race.entrants import RACES
from benchmarks.race.limit import FORWARDS, GIGA
from benchmarks.race.machine import PEERS_PYTHON, machine_line
from benchmarks.race.results import Results, Run
from benchmarks.race.spread import median, spread
from benchmarks.race.subject import HIDDEN, INTERMEDIATE, LENGTH_TOKENS, VOCABULARY

MB: Final = 1e6
_ERROR_DIGITS: Final = 4
_COLUMNS: Final = (
    "entrant",
    "threads",
    "CPU s",
    "÷ tightfit",
    "÷ limit",
    "wall s",
    "memory (MB)",
    "whole process (MB)",
    "output error",
    "KL (nats)",
)
_HEAD: Final = f"""## GPTQ and AWQ, against the peers

Written by `python -m benchmarks race`. Each entrant quantizes the linears of the same random Qwen2
({HIDDEN} and {INTERMEDIATE} wide, {VOCABULARY} tokens, float32) on the same token ids, a process
of its own each, in turn, all with the same number of threads. A figure is the median of the rounds,
with the smallest and the largest behind it. Time and memory are those of the quantization: imports,
and for the peers loading the model, came before. Memory is the peak over what was held then; that
of the whole process has the imports in it and the model of the peers. Output error is the mean over
the linears of the relative error of what they put out, KL that of the logits, both against the
unquantized model on tokens that nobody calibrated on. The limit is arithmetic
(`benchmarks/race/limit.py`): {FORWARDS} forwards, triangular Hessians, factorization and column
loop at the speed of a float32 product, as torch computes it unasked (by MKL) and as tightfit does
(`--calib-precision medium`: by oneDNN; where a CPU has AMX its factors are bfloat16). gptqmodel
takes bfloat16 unless it is told otherwise; the others have the type of the checkpoint.
"""


def race_sections(results: Results) -> str:
    """All that was measured so far."""
    parts = [_HEAD, f"{machine_line(results.machine)} {_rates(results)}\n"]
    if results.skipped:
        names = ", ".join(results.skipped)
        parts.append(f"Not installed (here or for `{PEERS_PYTHON}`), so not run: {names}.\n")
    cases = dict.fromkeys((run.race, run.sequences) for run in results.runs)
    order = list(RACES)
    for race, sequences in sorted(cases, key=lambda case: (order.index(case[0]), case[1])):
        title = f"### {RACES[race].title}, {sequences} x {LENGTH_TOKENS} tokens"
        parts.append(f"{title}\n\n{_table(results, race, sequences)}")
    return "\n".join(parts)


def _rates(results: Results) -> str:
    rates = [
        f"{median(seen) / GIGA:.0f} GFLOP/s, {median(results.own_rates[threads]) / GIGA:.0f} as "
        f"tightfit does it, with {threads} thread" + "s" * (int(threads) > 1)
        for threads, seen in sorted(results.rates.items())
        if seen
    ]
    return f"One core multiplies at {', '.join(rates)}."


def _table(results: Results, race: str, sequences: int) -> str:
    runs = [run for run in results.runs if (run.race, run.sequences) == (race, sequences)]
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|" + "---:|" * (len(_COLUMNS) - 1)]
    for threads in sorted({run.threads for run in runs}):
        lines += _rows(results, [run for run in runs if run.threads == threads])
    return "\n".join(lines) + "\n"


def _rows(results: Results, runs: list[Run]) -> Iterator[str]:
    """Of one case; the first entrant that ran is ours."""
    race, sequences, threads = runs[0].race, runs[0].sequences, runs[0].threads
    limit_s = results.limit_s(sequences, threads) if RACES[race].has_limit else None
    ours_s = median(run.cpu_s for run in runs if run.entrant == runs[0].entrant)
    if limit_s is not None:
        own_s = results.own_limit_s(sequences, threads)
        for label, seconds in (("the limit", limit_s), ("the limit at tightfit's rate", own_s)):
            ratios = f"{seconds / ours_s:.2f} | {seconds / limit_s:.2f}"
            yield f"| {label} | {threads} | {seconds:.1f} | {ratios} | - | - | - | - | - |"
    for label in dict.fromkeys(run.entrant for run in runs):
        own = [run for run in runs if run.entrant == label]
        cpu_s = median(run.cpu_s for run in own)
        cells = (
            label,
            str(threads),
            spread(run.cpu_s for run in own),
            f"{cpu_s / ours_s:.2f}",
            "-" if limit_s is None else f"{cpu_s / limit_s:.2f}",
            spread(run.wall_s for run in own),
            spread((run.memory_bytes / MB for run in own), 0),
            spread((run.rss_bytes / MB for run in own), 0),
            spread((run.output_error for run in own), _ERROR_DIGITS),
            spread((run.kl_nats for run in own), _ERROR_DIGITS),
        )
        yield f"| {' | '.join(cells)} |"
