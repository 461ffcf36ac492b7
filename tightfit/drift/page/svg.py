"""A matplotlib figure as inline SVG that belongs to its page.

Text stays text in the page's typeface, colours become CSS variables (so that light and dark both
work), ids are unique to the chart, and the same figure gives the same bytes. Sizes are in CSS
pixels of a chart `WIDTH_PX` wide, about what a phone shows: it only ever grows.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

from tightfit.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PX: Final = 340
"""A phone of 360 pixels less the page's margins shows 328 of them."""
FONT_PX: Final = 11.5
"""Still 11 pixels on that phone."""
PX_PER_INCH: Final = 72
"""matplotlib's SVG unit is the point, 1/72 inch."""

INK: Final = "#010101"
MUTED: Final = "#020202"
GRID: Final = "#030303"
LIMIT: Final = "#040404"
PAPER: Final = "#050505"
SERIES: Final = tuple(f"#0a0a{index:02x}" for index in range(6))
"""Stand-ins for colours: none occurs otherwise."""
VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    LIMIT: "var(--fail)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tightfit",
    "font.size": FONT_PX,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_FONT: Final = re.compile(r"font-family: [^;\"]*; ?|font: ([\d.]+px)[^;\"]*; ?")
_ID: Final = re.compile(r' id="([^"]+)"')
_REFERENCE: Final = re.compile(r'(?:xlink:)?href="#([^"]+)"|url\(#([^)]+)\)')


@contextmanager
def chart(height_px: float) -> Iterator["tuple[Figure, Axes]"]:
    """A figure and its axes under the page's settings, whatever the user's matplotlibrc says."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "the charts of the report need the package matplotlib, which is not installed",
            hint="install it: pip install 'tightfit[drift]'",
        ) from error
    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(WIDTH_PX / PX_PER_INCH, height_px / PX_PER_INCH))
        yield figure, figure.add_axes((0, 0, 1, 1))


def place(axes: "Axes", height_px: float, *, left: float, bottom: float, top: float = 8) -> None:
    """Set the margins in pixels; the right one leaves half a tick label."""
    right = 12
    axes.set_position(
        (
            left / WIDTH_PX,
            bottom / height_px,
            (WIDTH_PX - left - right) / WIDTH_PX,
            (height_px - bottom - top) / height_px,
        )
    )


def to_svg(figure: "Figure", *, name: str, label: str) -> Markup:
    """The figure as an `<svg>` that assistive software reads as an image with this label."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = _METADATA.sub("", text)
    text = _FONT.sub(lambda match: f"font-size: {match[1]}; " if match[1] else "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = _own_ids(text, name)
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None
    opening = f'<svg role="img" aria-label="{escape(label)}" {view[0]}>'
    return Markup(opening + re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :]).strip())


def _own_ids(text: str, name: str) -> str:
    """Ids that something refers to get the chart's name; the others go."""
    used = {first or second for first, second in _REFERENCE.findall(text)}
    text = _ID.sub(lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    return _REFERENCE.sub(
        lambda match: f'href="#{name}-{match[1]}"' if match[1] else f"url(#{name}-{match[2]})", text
    )
