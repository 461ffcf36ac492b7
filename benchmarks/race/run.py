"""Run every entrant as a process of its own, in turn, and score what it leaves.

Within a round all entrants run one after the other (A B C A B C ...) with the same number of
threads, so what slows the machine down slows all of them down. The rate of the machine is measured
in every round too. What is not installed is skipped by name.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.documents import DOCS, write_part
from benchmarks.race.entrants import PACKAGES, RACES, Entrant
from benchmarks.race.limit import gemm_flops_per_s
from benchmarks.race.machine import interpreter_of, machine
from benchmarks.race.measured import FIGURES
from benchmarks.race.report import race_sections
from benchmarks.race.results import Results, Run
from benchmarks.race.score import score
from benchmarks.race.subject import LAYERS, make_model
from tightfit.calib.precision import Precision
from tightfit.pipeline.quantize import Method

RESULTS: Final = DOCS / "race.json"
DOCUMENT: Final = DOCS / "performance.md"
PART: Final = "race"
_ROOT: Final = Path(__file__).parents[2]
_SHOWN_CHARS: Final = 2000
_GPTQMODEL_WORKERS: Final = 2
"""The fewest that it starts with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is run."""

    rounds: int = 3
    threads: tuple[int, ...] = (1, 2)
    n_layers: int = LAYERS
    sequences: tuple[int, ...] | None = None
    """In the place of every race's own."""
    labels: tuple[str, ...] | None = None
    """Entrants to run; None: all."""


SMALL: Final = Plan(rounds=1, threads=(1,), n_layers=2, sequences=(2,))
"""A minute, to see that it works: its figures mean nothing."""


def run_race(plan: Plan) -> Iterator[Results]:
    """What was measured so far, after each process."""
    wanted = [
        (name, entrant)
        for name, race in RACES.items()
        for entrant in race.entrants
        if plan.labels is None or entrant.label in plan.labels
    ]
    packages = dict.fromkeys(entrant.package for _, entrant in wanted)
    results = Results(
        machine=machine(PACKAGES),
        n_layers=plan.n_layers,
        skipped=tuple(package for package in packages if interpreter_of(package) is None),
        rates={str(threads): [] for threads in plan.threads},
        own_rates={str(threads): [] for threads in plan.threads},
        runs=(),
    )
    there = [(name, each) for name, each in wanted if each.package not in results.skipped]
    with tempfile.TemporaryDirectory(prefix="tightfit-race-") as scratch:
        model = Path(scratch) / "model"
        make_model(model, plan.n_layers)
        for name, entrant, sequences, threads, number in _turns(plan, there):
            if entrant == there[0][1]:
                for rates, precision in (
                    (results.rates, Precision.HIGHEST),
                    (results.own_rates, Method().precision),
                ):
                    rates[str(threads)].append(gemm_flops_per_s(threads, precision))
            with tempfile.TemporaryDirectory(dir=scratch) as output:
                run = run_entrant(name, entrant, model, Path(output), sequences, threads)
            print(f"round {number + 1}: {run}", flush=True)
            results = replace(results, runs=(*results.runs, run))
            yield results


def _turns(
    plan: Plan, entrants: Sequence[tuple[str, Entrant]]
) -> Iterator[tuple[str, Entrant, int, int, int]]:
    """Race, entrant, sequences, threads and round, in the order they are run."""
    for number in range(plan.rounds):
        for threads in plan.threads:
            for name, entrant in entrants:
                sizes = plan.sequences or RACES[name].sequences
                for sequences in sizes:
                    if entrant.is_slow and (number, sequences) != (0, sizes[0]):
                        continue
                    yield name, entrant, sequences, threads, number


def run_entrant(
    race: str, entrant: Entrant, model: Path, output: Path, sequences: int, threads: int
) -> Run:
    """One process, and the score of what it leaves; raises `RuntimeError` when it fails."""
    python = interpreter_of(entrant.package)
    assert python is not None, entrant.package
    module = f"benchmarks.race.{entrant.module}"
    command = [python, "-m", module, *entrant.arguments, str(model), str(output), str(sequences)]
    count = str(threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "GPTQMODEL_CPU_WORKERS": str(max(_GPTQMODEL_WORKERS, threads)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(_ROOT),
    }
    log = output / "log"
    with log.open("wb") as stream:
        status = subprocess.run(
            command, env=environment, cwd=output, stdout=stream, stderr=stream, check=False
        ).returncode
    if status:
        said = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_CHARS:]
        raise RuntimeError(f"exit status {status}: {' '.join(command)}\n{said}")
    scored = score(model, output)
    return Run(
        race=race,
        entrant=entrant.label,
        sequences=sequences,
        threads=threads,
        output_error=scored.output_error,
        kl_nats=scored.kl_nats,
        **json.loads((output / FIGURES).read_text(encoding="utf-8")),
    )


def write_race(plan: Plan | None = None) -> None:
    """Race, and write `docs/race.json` and the part of `docs/performance.md` after each process."""
    for results in run_race(plan or Plan()):
        results.write(RESULTS)
        render_race()


def render_race() -> None:
    """Write the part of `docs/performance.md` anew from `docs/race.json`, where that is there."""
    if RESULTS.exists():
        write_part(DOCUMENT, PART, race_sections(Results.read(RESULTS)))


def print_race(plan: Plan) -> None:
    """Race and print the tables; writes nothing."""
    *_, results = run_race(plan)
    print(race_sections(results))
