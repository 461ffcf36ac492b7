"""The accuracy drop of each artifact with its intervals, against what may be lost."""

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from tightfit.drift.page import numerals
from tightfit.drift.page.series import Series
from tightfit.drift.page.svg import LIMIT, MUTED, PAPER, chart, place, to_svg

ROW_PX: Final = 46
"""A name and the two intervals below it."""
FRAME_PX: Final = 64
"""Above and below the rows."""
NAME_CHARS: Final = 44
"""What fits the width; the key has the whole name."""
BOOTSTRAP_SHIFT: Final = 0.22
"""Of a row, below the interval that the gate decides on."""
NAME_SHIFT: Final = 0.3
"""Of a row, above that interval."""


def accuracy_chart(series: Sequence[Series]) -> Markup:
    """Intervals of the drop: thick the gate's, thin the bootstrap's."""
    height_px = FRAME_PX + ROW_PX * len(series)
    with chart(height_px) as (figure, axes):
        limits = {each.report.limits.max_drop_points for each in series}
        edges = [0.0, *limits]
        for row, each in enumerate(series):
            accuracy = each.report.accuracy
            low, high = accuracy.drop_interval_points
            axes.plot([low, high], [row, row], color=each.colour, linewidth=3)
            axes.plot(
                accuracy.drop_points,
                row,
                color=each.colour,
                marker=each.marker,
                markersize=8,
                markeredgecolor=PAPER,
                markeredgewidth=1.2,
            )
            below = row + BOOTSTRAP_SHIFT
            axes.plot(
                accuracy.bootstrap_interval_points, [below, below], color=each.colour, linewidth=1
            )
            edges += [low, high, *accuracy.bootstrap_interval_points]
        margin = 0.06 * (max(edges) - min(edges) or 1)
        axes.set_xlim(min(edges) - margin, max(edges) + margin)
        axes.set_ylim(len(series) - 0.4, -0.9)
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
        for limit in limits:
            axes.axvline(limit, color=LIMIT, linestyle=(0, (1, 2)), linewidth=1.4, zorder=0)
        for row, each in enumerate(series):
            if len(series) > 1:
                axes.text(
                    axes.get_xlim()[0],
                    row - NAME_SHIFT,
                    _short(each.name),
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
                )
        axes.set_yticks([])
        axes.grid(False)
        axes.xaxis.set_major_formatter(lambda points, _place: f"{points:g}".replace("-", "−"))
        axes.set_xlabel("accuracy lost, points")
        place(axes, height_px, left=12, bottom=40)
        return to_svg(figure, name="accuracy", label=_label(series))


def _short(name: str) -> str:
    """The name cut in its middle: its end tells quantizations apart."""
    if len(name) <= NAME_CHARS:
        return name
    half = NAME_CHARS // 2
    return f"{name[: half - 1]}…{name[-half:]}"


def _label(series: Sequence[Series]) -> str:
    sentences = []
    for each in series:
        accuracy = each.report.accuracy
        low, high = accuracy.drop_interval_points
        sentences.append(
            f"{each.name}: {numerals.fixed(accuracy.drop_points, 2, sign=True)} points, "
            f"from {numerals.fixed(low, 2, sign=True)} to {numerals.fixed(high, 2, sign=True)}, "
            f"limit {each.report.limits.max_drop_points:g}."
        )
    return "Accuracy drop and its 90 % interval. " + " ".join(sentences)
