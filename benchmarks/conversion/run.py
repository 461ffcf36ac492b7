"""Convert each checkpoint to each file type, ours and llama.cpp in turn, a process of its own each.

`OMP_NUM_THREADS` is unset for both: each uses the cores as it does by itself.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.conversion.checkpoints import FULL, Model
from benchmarks.conversion.converter import CHECKOUT, SCRIPT
from benchmarks.conversion.file_error import relative_error
from benchmarks.conversion.quantizer import PACKAGE
from benchmarks.conversion.report import conversion_sections
from benchmarks.conversion.results import OURS, THEIRS, Results, Run
from benchmarks.documents import DOCS, write_part
from benchmarks.process_tree import Cost, disk_bytes, measure
from benchmarks.race.machine import installed, machine

RESULTS: Final = DOCS / "conversion.json"
DOCUMENT: Final = DOCS / "performance.md"
PART: Final = "conversion"
ROUNDS: Final = 2
_ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = (OURS, "torch", "numpy", "numba", "gguf", PACKAGE)
_OPTIONS: Final = ("-t", "cpu-64gb", "--format", "gguf", "--calib", "none", "--method", "rtn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is run."""

    rounds: int = ROUNDS
    models: Mapping[str, Model]
    schemes: tuple[str, ...] | None = None
    """Of the models' file types; None: all."""


def missing() -> tuple[str, ...]:
    """What llama.cpp's way needs and this machine lacks."""
    checkout = os.environ.get(CHECKOUT)
    words = []
    if checkout is None:
        words.append(f"llama.cpp's converter (`{CHECKOUT}` names no checkout)")
    elif not (Path(checkout) / SCRIPT).is_file():
        words.append(f"llama.cpp's converter (no {SCRIPT} in `{CHECKOUT}`)")
    if PACKAGE not in installed(sys.executable):
        words.append(f"llama-quantize ({PACKAGE} is not installed)")
    return tuple(words)


def run_conversions(plan: Plan) -> Iterator[Results]:
    """What was measured so far, after each file."""
    results = Results(
        machine=machine(_PACKAGES),
        skipped=missing(),
        n_weights={name: model.n_weights for name, model in plan.models.items()},
        runs=(),
    )
    for name, model in plan.models.items():
        schemes = [each for each in model.schemes if plan.schemes is None or each in plan.schemes]
        with tempfile.TemporaryDirectory(prefix="tightfit-conversion-") as scratch:
            folder = Path(scratch)
            model.write(folder / "model")
            for _ in range(plan.rounds):
                for run in _round(name, schemes, folder, theirs=not results.skipped):
                    print(run, flush=True)
                    results = replace(results, runs=(*results.runs, run))
                    yield results


def _round(name: str, schemes: Sequence[str], folder: Path, *, theirs: bool) -> Iterator[Run]:
    """All file types, ours and theirs in turn."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        plain = Path(work) / "bf16.gguf"
        converted = _convert(folder / "model", plain) if theirs else None
        for scheme in schemes:
            with tempfile.TemporaryDirectory(dir=folder) as output:
                yield _ours(name, scheme, folder / "model", Path(output))
            if converted is not None:
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    yield _theirs(name, scheme, folder / "model", plain, converted, Path(output))


def _ours(name: str, scheme: str, model: Path, output: Path) -> Run:
    command = ("-m", "tightfit", "export", str(model), *_OPTIONS, "--scheme", scheme, "-o")
    cost = _measure((*command, str(output / "out")), output)
    (file,) = (output / "out").glob("*.gguf")
    return Run(
        model=name,
        scheme=scheme,
        maker=OURS,
        cpu_s=cost.cpu_s,
        convert_cpu_s=0.0,
        wall_s=cost.wall_s,
        rss_bytes=cost.tree_rss_bytes,
        anonymous_bytes=cost.tree_bytes,
        scratch_bytes=max(0, cost.disk_bytes - disk_bytes(output / "out")),
        file_bytes=file.stat().st_size,
        error=relative_error(model, file),
    )


def _convert(model: Path, plain: Path) -> Cost:
    module = "benchmarks.conversion.converter"
    options = ("--outtype", "bf16", "--outfile", str(plain))
    return _measure(("-m", module, str(model), *options), plain.parent)


def _theirs(name: str, scheme: str, model: Path, plain: Path, converted: Cost, output: Path) -> Run:
    file = output / "out.gguf"
    module = "benchmarks.conversion.quantizer"
    cost = _measure(("-m", module, str(plain), str(file), scheme), output)
    return Run(
        model=name,
        scheme=scheme,
        maker=THEIRS,
        cpu_s=converted.cpu_s + cost.cpu_s,
        convert_cpu_s=converted.cpu_s,
        wall_s=converted.wall_s + cost.wall_s,
        rss_bytes=max(converted.tree_rss_bytes, cost.tree_rss_bytes),
        anonymous_bytes=max(converted.tree_bytes, cost.tree_bytes),
        scratch_bytes=plain.stat().st_size,
        file_bytes=file.stat().st_size,
        error=relative_error(model, file),
    )


def _measure(arguments: Sequence[str], watched: Path) -> Cost:
    environment = ("env", "-u", "OMP_NUM_THREADS", f"PYTHONPATH={_ROOT}")
    command = (*environment, sys.executable, *arguments)
    return measure(command, log=watched.parent / "log", watched=watched)


def write_conversion(plan: Plan | None = None) -> None:
    """Convert, and write `docs/conversion.json` and the part of `docs/performance.md`."""
    for results in run_conversions(plan or Plan(models=FULL)):
        results.write(RESULTS)
        render_conversion()


def render_conversion() -> None:
    """Write the part anew from `docs/conversion.json`, where that is there."""
    if RESULTS.exists():
        write_part(DOCUMENT, PART, conversion_sections(Results.read(RESULTS)))


def print_conversion(plan: Plan) -> None:
    """Convert and print the tables; writes nothing."""
    *_, results = run_conversions(plan)
    print(conversion_sections(results))
