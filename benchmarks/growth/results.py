"""What the exports cost: `docs/growth.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth.fit import Line, exponent, last_over_first, line
from benchmarks.growth.series import Point
from benchmarks.process_tree import Cost

_FITTED = 2
"""The fewest runs that have an exponent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A point and what it cost."""

    series: str
    point: Point
    cost: Cost
    """Its disk is that of the job's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Of one series, over its runs."""

    wall_exponent: float
    cpu_exponent: float
    last_cpu_exponent: float
    """Of the last two runs alone, where start-up weighs least."""
    cpu_line: Line
    """CPU seconds as a start-up and a slope."""
    rss_ratio: float
    """Peak resident set of the last over that of the first."""
    anonymous_ratio: float
    """The same without mapped files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Of all runs so far."""

    machine: Mapping[str, Any]
    runs: tuple[Run, ...]

    def series(self, name: str) -> list[Run]:
        """The runs of a series, the smallest first."""
        own = [run for run in self.runs if run.series == name]
        return sorted(own, key=lambda run: run.point.amount)

    def has(self, series: str, point: Point) -> bool:
        """Whether that was measured."""
        return any((run.series, run.point) == (series, point) for run in self.runs)

    def write(self, file: Path) -> None:
        """As JSON with sorted keys, and the growth of each series, which `read` leaves out."""
        names = dict.fromkeys(run.series for run in self.runs)
        grown = {name: growth(self.series(name)) for name in names}
        found = {name: asdict(of) for name, of in grown.items() if of is not None}
        values = asdict(self) | {"growth": found}
        file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Results":
        """The inverse of `write`."""
        values = json.loads(file.read_text(encoding="utf-8"))
        runs = [
            Run(
                series=run["series"],
                point=Point.from_json(run["point"]),
                cost=Cost(**run["cost"]),
            )
            for run in values["runs"]
        ]
        return cls(machine=values["machine"], runs=tuple(runs))


def growth(runs: Sequence[Run]) -> Growth | None:
    """Over runs in order of size; None for fewer than two."""
    if len(runs) < _FITTED:
        return None
    amounts = [run.point.amount for run in runs]
    cpu_s = [run.cost.cpu_s for run in runs]
    return Growth(
        wall_exponent=exponent(amounts, [run.cost.wall_s for run in runs]),
        cpu_exponent=exponent(amounts, cpu_s),
        last_cpu_exponent=exponent(amounts[-_FITTED:], cpu_s[-_FITTED:]),
        cpu_line=line(amounts, cpu_s),
        rss_ratio=last_over_first([run.cost.tree_rss_bytes for run in runs]),
        anonymous_ratio=last_over_first([run.cost.tree_bytes for run in runs]),
    )
