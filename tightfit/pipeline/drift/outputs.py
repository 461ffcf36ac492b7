"""What a measurement leaves behind: the page, the record, and what other programs read."""

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tightfit.drift.outputs.junit import write_junit
from tightfit.drift.outputs.lm_eval import write_lm_eval
from tightfit.drift.page.render import write_page
from tightfit.drift.report import REPORT_NAME, write_reports
from tightfit.errors import ArtifactError, MissingPackageError
from tightfit.pipeline.drift.run import DriftResult
from tightfit.reporter import Reporter

PAGE_NAME = "drift.html"


def check_outputs(junit: Path | None, folder: Path | None) -> None:
    """Find out before hours of measuring what would fail after them.

    Raises `ArtifactError` for a place that cannot be written and `MissingPackageError`.
    """
    for place in (None if junit is None else junit.parent, folder):
        if place is not None:
            _check_writable(place)
    if junit is not None and junit.is_dir():
        raise ArtifactError(
            f"--junit {junit} is a folder", allowed="a file", hint=f"e.g. {junit / 'drift.xml'}"
        )
    if folder is not None:
        _require_page_packages()


def write_outputs(
    results: Sequence[DriftResult],
    junit: Path | None,
    folder: Path | None,
    *,
    date: datetime,
    reporter: Reporter,
) -> None:
    """Write what was asked for."""
    reports = [result.report for result in results]
    if junit is not None:
        write_junit(junit, reports)
    if folder is None:
        return
    write_reports(folder / REPORT_NAME, reports)
    write_page(folder / PAGE_NAME, reports)
    for result in results:
        write_lm_eval(
            folder / "lm-eval",
            result.report,
            problems=result.problems,
            prompts=result.prompts,
            baseline=result.baseline,
            artifact=result.artifact,
            date=date,
        )
    reporter.info(f"report: {folder / PAGE_NAME}")


def _check_writable(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ArtifactError(
            f"cannot write into {place}: {error}", hint="choose another place"
        ) from error


def _require_page_packages() -> None:
    from importlib.util import find_spec

    absent = [name for name in ("jinja2", "matplotlib", "latex2mathml") if find_spec(name) is None]
    if absent:
        raise MissingPackageError(
            f"the report page needs {absent[0]}, which is not installed",
            hint="install it: pip install 'tightfit[drift]'",
        )
