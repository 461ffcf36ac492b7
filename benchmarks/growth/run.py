"""Export each point as a process of its own, as the command line does it by itself.

`OMP_NUM_THREADS` is unset, so the export uses the cores as it does without a benchmark around it.
A checkpoint lies on disk while its point is measured, and not longer.
"""

import json
import os
import random
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.documents import DOCS, write_part
from benchmarks.growth.plot import draw
from benchmarks.growth.report import growth_sections, summary
from benchmarks.growth.results import Results, Run
from benchmarks.growth.series import FULL, Point, Series, Text
from benchmarks.process_tree import Cost, measure
from benchmarks.race.machine import machine
from tightfit.pipeline.job import FOLDER as JOB_FOLDER

RESULTS: Final = DOCS / "growth.json"
DOCUMENT: Final = DOCS / "performance.md"
PART: Final = "growth"
_ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("tightfit", "torch", "numpy", "numba")
_OPTIONS: Final = ("-t", "cpu-64gb", "--format", "gguf", "--scheme", "q4_k_m")
_LETTERS_PER_WORD: Final = 6
"""Any word is at least one token, so as many words as tokens are enough text."""


def run_series(series: Mapping[str, Series], held: Results) -> Iterator[Results]:
    """Those results and each new run; what they have is not repeated."""
    for name, of in series.items():
        for point in of.points:
            if held.has(name, point):
                continue
            with tempfile.TemporaryDirectory(prefix="tightfit-growth-") as folder:
                run = Run(series=name, point=point, cost=export(point, Path(folder)))
            held = replace(held, runs=(*held.runs, run))
            print(summary(name, held.series(name)), flush=True)
            yield held


def export(point: Point, folder: Path) -> Cost:
    """Write the checkpoint into `folder`, export it, and count."""
    model, output = folder / "model", folder / "out"
    point.model.write(model)
    if point.text is None:
        method: tuple[str, ...] = ("--calib", "none", "--method", "rtn")
    else:
        method = _gptq(point.text, folder / "text.jsonl")
    # What is still to be written to the disk would slow the export down.
    os.sync()
    program = ("env", "-u", "OMP_NUM_THREADS", f"PYTHONPATH={_ROOT}", sys.executable, "-m")
    command = (*program, "tightfit", "export", str(model), *_OPTIONS, *method, "-o", str(output))
    return measure(command, log=folder / "log", watched=output / JOB_FOLDER)


def _gptq(text: Text, file: Path) -> tuple[str, ...]:
    """Write calibration text of random words, and say how to use it."""
    words = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(text.n_sequences):
            line = " ".join(
                "".join(words.choices(string.ascii_lowercase, k=_LETTERS_PER_WORD))
                for _ in range(text.length_tokens)
            )
            stream.write(json.dumps({"text": line}) + "\n")
    sizes = ("--calib-samples", str(text.n_sequences), "--calib-length", str(text.length_tokens))
    return ("--method", "gptq", "--calib", str(file), *sizes)


def no_results() -> Results:
    """Of this machine, before anything was measured."""
    return Results(machine=machine(_PACKAGES), runs=())


def write_growth(series: Mapping[str, Series] = FULL, *, again: bool = False) -> None:
    """Measure what is missing, and write `docs/growth.json`, plots and part of the document.

    `again` measures these series anew.
    """
    held = Results.read(RESULTS) if RESULTS.exists() else no_results()
    if again:
        others = tuple(run for run in held.runs if run.series not in series)
        held = replace(no_results(), runs=others)
    for results in run_series(series, held):
        results.write(RESULTS)
        render_growth()


def render_growth() -> None:
    """Write the plots and the part anew from `docs/growth.json`, where that is there."""
    if not RESULTS.exists():
        return
    results = Results.read(RESULTS)
    for name, series in FULL.items():
        if results.series(name):
            draw(series, results.series(name), DOCS / plot_name(name))
    write_part(DOCUMENT, PART, growth_sections(FULL, results, plot_name))


def plot_name(series: str) -> str:
    """File of a series' plot, beside the document."""
    return f"growth-{series}.svg"


def print_growth(series: Mapping[str, Series]) -> None:
    """Measure and print the tables; writes nothing."""
    *_, results = run_series(series, no_results())
    print(growth_sections(series, results, plot_name))
