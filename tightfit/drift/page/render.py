"""The report as one HTML page that needs nothing else: no network, no scripts.

The page holds what models wrote, so everything is escaped, formulas are rebuilt from a list of
allowed elements (`mathml`), and a Content-Security-Policy forbids scripts and requests anyway.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tightfit.drift.page.accuracy_chart import accuracy_chart
from tightfit.drift.page.comparable import comparable
from tightfit.drift.page.drift_charts import distribution_chart, position_chart, size_chart
from tightfit.drift.page.excerpt import Excerpt, excerpt
from tightfit.drift.page.facts import fact_groups
from tightfit.drift.page.figures import (
    accuracy_table,
    grade_table,
    reasoning_table,
    size_table,
    token_table,
    words,
)
from tightfit.drift.page.mathml import to_mathml
from tightfit.drift.page.numerals import count
from tightfit.drift.page.prose import to_html
from tightfit.drift.page.series import series_of
from tightfit.drift.page.table import artifact_names
from tightfit.drift.page.verdicts import verdicts
from tightfit.drift.report import DriftReport, Flip
from tightfit.files import write_text_whole

BREAKS: Final = "_./-"
"""A long file name may break behind these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFlip:
    """A flipped problem as shown."""

    unique_id: str
    lost: bool
    problem: Markup
    gold: Markup
    baseline_grade: str
    baseline: Excerpt
    artifact_grade: str
    artifact: Excerpt


@dataclass(frozen=True, kw_only=True, slots=True)
class FlipGroup:
    """The flipped problems of one artifact."""

    name: str
    n_lost: int
    n_won: int
    flips: tuple[ShownFlip, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart under its heading."""

    title: str
    note: str
    svg: Markup


def write_page(path: Path, reports: Sequence[DriftReport]) -> None:
    """Write the page; raises `DriftError` when the reports are not alike."""
    write_text_whole(path, render_page(reports))


def render_page(reports: Sequence[DriftReport]) -> str:
    """The page of one report, or of several side by side.

    Raises `DriftError` when the reports are not alike and `MissingPackageError` without matplotlib
    or latex2mathml.
    """
    assert reports
    comparable(reports)
    environment = Environment(
        loader=PackageLoader("tightfit.drift.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["count"] = count
    page = environment.get_template("page.html.j2").render(
        css=Markup(environment.get_template("page.css").render()),
        reports=reports,
        names=artifact_names(reports),
        series=series_of(reports),
        verdicts=verdicts(reports),
        figures=(accuracy_table(reports), token_table(reports), size_table(reports)),
        charts=_charts(reports),
        health=(reasoning_table(reports), grade_table(reports)),
        flip_groups=_flip_groups(reports),
        groups=fact_groups(reports),
        commands=tuple(dict.fromkeys(report.command for report in reports)),
    )
    # Half a surrogate pair, which a byte-level tokenizer can give, is no character of a file.
    return page.encode("utf-8", "replace").decode("utf-8")


def _charts(reports: Sequence[DriftReport]) -> tuple[Chart, ...]:
    series = series_of(reports)
    drawn = (
        (
            "Accuracy drop against the limit",
            "Thick: the interval that the gate decides on. Thin: bootstrap. Dotted: the limit.",
            accuracy_chart(series),
        ),
        (
            "Drift along the answer",
            "Mean KL in nats by the place of the token.",
            position_chart(series),
        ),
        (
            "Distribution of drift",
            "Share of tokens by their KL, one power of ten each.",
            distribution_chart(series),
        ),
        (
            "Size against drift",
            "Mean KL in nats with its interval. Dotted: the limit.",
            size_chart(series),
        ),
    )
    return tuple(Chart(title=title, note=note, svg=svg) for title, note, svg in drawn if svg)


def _flip_groups(reports: Sequence[DriftReport]) -> tuple[FlipGroup, ...]:
    return tuple(
        FlipGroup(
            name=name,
            n_lost=report.accuracy.baseline_only,
            n_won=report.accuracy.artifact_only,
            flips=tuple(_shown(flip, report.protocol.forced_opening) for flip in report.flips),
        )
        for name, report in zip(artifact_names(reports), reports, strict=True)
    )


def _shown(flip: Flip, forced_opening: str) -> ShownFlip:
    return ShownFlip(
        unique_id=flip.unique_id,
        lost=flip.lost,
        problem=to_html(flip.problem),
        gold=to_mathml(flip.gold, display=False),
        baseline_grade=words(flip.baseline_grade),
        baseline=excerpt(flip.baseline_text, forced_opening=forced_opening),
        artifact_grade=words(flip.artifact_grade),
        artifact=excerpt(flip.artifact_text, forced_opening=forced_opening),
    )


def _breakable(name: str) -> Markup:
    """A name that may break over lines."""
    # No entity that escaping writes holds one of them.
    return Markup(re.sub(f"([{BREAKS}])", r"\1<wbr>", str(escape(name))))
