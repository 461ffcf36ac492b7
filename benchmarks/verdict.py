"""What was asked of the speed, and what the other benchmarks measured: a table of ratios.

Read from `docs/race.json`, `docs/conversion.json` and `docs/growth.json`; a row whose figures are
not there is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.conversion import results as conversion
from benchmarks.conversion import run as conversion_run
from benchmarks.conversion.checkpoints import FULL
from benchmarks.documents import DOCS, replace_part
from benchmarks.growth import results as growth_results
from benchmarks.growth import run as growth_run
from benchmarks.growth.series import FULL as GROWTH
from benchmarks.race import results as race
from benchmarks.race import run as race_run
from benchmarks.race.entrants import RACES
from benchmarks.race.spread import median
from benchmarks.race.subject import LENGTH_TOKENS

DOCUMENT: Final = DOCS / "performance.md"
PART: Final = "verdict"
_GB: Final = 1e9
_FASTER: Final = {"gptq": 2.0, "awq": 5.0}
"""CPU seconds of the fastest peer over ours, at least."""
_TIMES_LIMIT: Final = 1.25
_MEMORY_RATIO: Final = 0.5
_CONVERSION_FASTER: Final = 2.0
_RSS_GB: Final = 1.0
_LINEAR: Final = 1.1
"""Exponent of time that still counts as linear."""
_FLAT: Final = 1.1
"""Peak of the last over that of the first that still counts as flat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure and its bound."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps its bound."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        assert self.at_least is not None
        return self.measured >= self.at_least

    def line(self) -> str:
        """Of the table."""
        asked = f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"
        told = "met" if self.is_met else "**falls short**"
        return f"| {self.what} | {asked} | {self.measured:.2f} | {told} |"


def race_rows(results: race.Results) -> Iterator[Row]:
    """Of each algorithm, on each number of tokens and threads."""
    cases = dict.fromkeys((run.race, run.sequences, run.threads) for run in results.runs)
    for name, sequences, threads in cases:
        runs = [
            run
            for run in results.runs
            if (run.race, run.sequences, run.threads) == (name, sequences, threads)
        ]
        labels = {each.label: each.is_ours for each in RACES[name].entrants}
        first = next(label for label, is_ours in labels.items() if is_ours)
        of = f"{name.upper()}, {sequences} x {LENGTH_TOKENS} tokens"
        if threads > 1:
            of += f", {threads} threads"
        figure = _figures(runs)
        peers = [label for label in figure if not labels[label]]
        if first not in figure or not peers:
            continue

        theirs = [figure[peer] for peer in peers]
        if RACES[name].has_limit:
            cpu_s = median(run.cpu_s for run in figure[first])
            for limit_s, rate in (
                (results.limit_s(sequences, threads), "torch's"),
                (results.own_limit_s(sequences, threads), "our"),
            ):
                what = f"{of}: CPU time ÷ computed limit at {rate} rate"
                yield Row(what=what, measured=cpu_s / limit_s, at_most=_TIMES_LIMIT)
        for label in (each for each in figure if labels[each]):
            what = f"{of}: fastest peer ÷ {label}, CPU time"
            faster = 1 / _ratio(figure[label], theirs, lambda run: run.cpu_s)
            yield Row(what=what, measured=faster, at_least=_FASTER[name])
        for title, key in (("output error", _error), ("KL", _kl)):
            what = f"{of}: {title} ÷ the best peer's"
            yield Row(what=what, measured=_ratio(figure[first], theirs, key), at_most=1)
        memory = _ratio(figure[first], theirs, lambda run: run.memory_bytes)
        what = f"{of}: memory over the baseline ÷ the least peer's"
        yield Row(what=what, measured=memory, at_most=_MEMORY_RATIO)


def conversion_rows(results: conversion.Results) -> Iterator[Row]:
    """Of each checkpoint in each file type."""
    cases = dict.fromkeys((run.model, run.scheme) for run in results.runs)
    for model, scheme in cases:
        runs = [run for run in results.runs if (run.model, run.scheme) == (model, scheme)]
        ours, theirs = (
            [run for run in runs if run.maker == maker]
            for maker in (conversion.OURS, conversion.THEIRS)
        )
        of = f"{FULL[model].title}, {scheme}"
        rss_gb = median(run.rss_bytes for run in ours) / _GB
        yield Row(what=f"{of}: peak RSS (GB)", measured=rss_gb, at_most=_RSS_GB)
        if not theirs:
            continue
        faster = median(run.wall_s for run in theirs) / median(run.wall_s for run in ours)
        what = f"{of}: llama.cpp ÷ tightfit, wall time"
        yield Row(what=what, measured=faster, at_least=_CONVERSION_FASTER)
        error = median(run.error for run in ours) / median(run.error for run in theirs)
        yield Row(what=f"{of}: error ÷ llama.cpp's", measured=error, at_most=1)


def growth_rows(results: growth_results.Results) -> Iterator[Row]:
    """Of each series."""
    for name, series in GROWTH.items():
        grown = growth_results.growth(results.series(name))
        if grown is None:
            continue
        what = f"{series.title}: exponent of CPU time"
        yield Row(what=what, measured=grown.cpu_exponent, at_most=_LINEAR)
        what = f"{series.title}: peak RSS, last ÷ first"
        yield Row(what=what, measured=grown.rss_ratio, at_most=_FLAT)


def verdict_table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    head = "| what | asked | measured | |\n|---|---:|---:|---|\n"
    return head + "".join(f"{row.line()}\n" for row in rows)


def write_verdict() -> None:
    """Write the part of `docs/performance.md`."""
    rows: list[Row] = []
    if race_run.RESULTS.exists():
        rows += race_rows(race.Results.read(race_run.RESULTS))
    if conversion_run.RESULTS.exists():
        rows += conversion_rows(conversion.Results.read(conversion_run.RESULTS))
    if growth_run.RESULTS.exists():
        rows += growth_rows(growth_results.Results.read(growth_run.RESULTS))
    replace_part(DOCUMENT, PART, verdict_table(rows))


def _figures(runs: Sequence[race.Run]) -> dict[str, list[race.Run]]:
    """By entrant, in the order in which they ran."""
    return {
        label: [run for run in runs if run.entrant == label]
        for label in dict.fromkeys(run.entrant for run in runs)
    }


def _ratio(
    ours: Sequence[race.Run],
    theirs: Sequence[Sequence[race.Run]],
    key: Callable[[race.Run], float],
) -> float:
    """Our median over the least of theirs."""
    return median(map(key, ours)) / min(median(map(key, runs)) for runs in theirs)


def _error(run: race.Run) -> float:
    return run.output_error


def _kl(run: race.Run) -> float:
    return run.kl_nats


if __name__ == "__main__":
    write_verdict()
