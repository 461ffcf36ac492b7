"""`tightfit drift compare`: artifacts that were measured alike, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from tightfit.cli.drift_tables import render_comparison
from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import emit

EXAMPLES = examples(
    ("drift compare q8 q4 q2", "three folders that `tightfit drift` has measured"),
    ("drift compare q4/drift.json awq/drift.json --report compare.html", "the same as a page"),
)


def drift_compare_command(
    measured: Annotated[
        list[Path],
        typer.Argument(help="Folders that drift was measured of, report folders, or drift.json."),
    ],
    report: Annotated[Path | None, typer.Option("--report", help="Write a page to read.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put measured artifacts side by side.

    Only like is compared with like: the same problems, protocol, baseline and definitions. Nothing
    is run.
    """
    from tightfit.drift.page.comparable import comparable
    from tightfit.drift.page.render import write_page
    from tightfit.drift.report import to_fields
    from tightfit.pipeline.drift.measured import read_measured

    reports = [each for path in measured for each in read_measured(path)]
    comparable(reports)
    if report is not None:
        write_page(report, reports)
    emit(
        {"artifacts": [to_fields(each) for each in reports]},
        render_comparison(reports),
        as_json=as_json,
    )
