"""How artifacts are told apart in charts: by colour and by marker, also without colour.

Six colours that stay apart for colour-blind readers (after Okabe and Ito, darkened or lightened
until they have contrast with the page) and seven markers: 42 pairs before one comes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tightfit.drift.page.svg import SERIES, VARIABLES
from tightfit.drift.page.table import short_names
from tightfit.drift.report import DriftReport

MARKERS: Final = {
    "o": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-4L4 3H-4z",
    "D": "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "v": "M0 4L4-3H-4z",
    "P": "M-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "X": "M0-1.9L2-3.9L3.9-2L1.9 0L3.9 2L2 3.9L0 1.9L-2 3.9L-3.9 2L-1.9 0L-3.9-2L-2-3.9z",
}
"""matplotlib's markers and the same as SVG paths, for the key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """An artifact in the charts."""

    name: str
    report: DriftReport
    colour: str
    """Stand-in for matplotlib."""
    variable: str
    """The same colour in the page."""
    marker: str
    path: str
    """The marker in the key."""


def series_of(reports: Sequence[DriftReport]) -> tuple[Series, ...]:
    """The artifacts with their colours and markers."""
    markers = tuple(MARKERS)
    return tuple(
        Series(
            name=name,
            report=report,
            colour=SERIES[index % len(SERIES)],
            variable=VARIABLES[SERIES[index % len(SERIES)]],
            marker=markers[index % len(markers)],
            path=MARKERS[markers[index % len(markers)]],
        )
        for index, (name, report) in enumerate(zip(short_names(reports), reports, strict=True))
    )
