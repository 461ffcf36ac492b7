"""Exports of synthetic checkpoints like R1's: memory, time and disk over layers and over experts.

    python -m benchmarks.scale [--method rtn gptq] [--hidden 1024] [--missing] [--quick]
    python -m benchmarks.scale --method rtn --hidden 2048 --only 16 64

Each run is one `tightfit export` of a checkpoint that is written for it (`shaped_r1`) and removed
again, in a process of its own. Numbers go into `docs/scale.json` as each run ends, and from there
into `docs/scale.md`. `--missing` leaves out runs that are there already, so an interrupted sweep
goes on. `--only` measures one size, of layers and experts. `--quick` takes small sizes, prints the
tables and writes nothing.

Memory is that of processes without mapped files (`process_tree`). The prediction is what the same
command says with `--dry-run` before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.documents import DOCS, replace_part
from benchmarks.process_tree import Cost, measure
from benchmarks.r1_tensors import count_weights
from benchmarks.shaped_r1 import ShapedR1, write_shaped_r1
from tightfit.pipeline.job import FOLDER as JOB_FOLDER

RESULTS = DOCS / "scale.json"
DOCUMENT = DOCS / "scale.md"
PART = "measured"
OPTIONS = ("-t", "a100x8-80gb", "--scheme", "experts-q4_k", "--split-max-size", "1G")
METHODS: Mapping[str, tuple[str, ...]] = {
    "rtn": ("--calib", "none", "--method", "rtn"),
    "gptq": ("--method", "gptq", "--calib-samples", "16", "--calib-length", "256"),
}
"""What the command line says. 16 x 256 tokens: where 64 experts share them, one gets 512."""
TITLES: Mapping[str, str] = {"rtn": "Without calibration", "gptq": "Calibrated, GPTQ"}
HIDDEN: Mapping[str, int] = {"rtn": 1024, "gptq": 512}
"""Width of the sweep: GPTQ costs ten times as much a weight."""
QUICK_HIDDEN = 512
"""The narrowest whose experts have whole super-blocks of 256."""
GB = 1e9
BILLION = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One export."""

    method: str
    n_layers: int
    n_experts: int
    hidden: int

    @property
    def model(self) -> ShapedR1:
        """The checkpoint; an expert is half as wide as the model."""
        return ShapedR1(
            n_layers=self.n_layers,
            n_experts=self.n_experts,
            hidden=self.hidden,
            moe_intermediate=self.hidden // 2,
        )

    def command(self, checkpoint: str, output: str) -> tuple[str, ...]:
        """What is measured, without the program."""
        return ("export", checkpoint, *OPTIONS, *METHODS[self.method], "-o", output)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Sizes to measure: each number of layers, and each number of experts."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    fixed_layers: int
    fixed_experts: int

    def over_layers(self, method: str, hidden: int) -> list[Case]:
        """As many experts each."""
        return [
            Case(method=method, n_layers=count, n_experts=self.fixed_experts, hidden=hidden)
            for count in self.layers
        ]

    def over_experts(self, method: str, hidden: int) -> list[Case]:
        """As many layers each."""
        return [
            Case(method=method, n_layers=self.fixed_layers, n_experts=count, hidden=hidden)
            for count in self.experts
        ]

    def cases(self, method: str, hidden: int) -> list[Case]:
        """All of them once."""
        both = self.over_layers(method, hidden) + self.over_experts(method, hidden)
        return list(dict.fromkeys(both))


FULL = Sweep(layers=(4, 8, 16), experts=(8, 64, 256), fixed_layers=4, fixed_experts=64)
QUICK = Sweep(layers=(2, 3), experts=(8, 16), fixed_layers=2, fixed_experts=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What the plan predicts, in bytes."""

    peak_memory_bytes: int
    """Of one process."""
    scratch_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A case and what it cost."""

    case: Case
    n_weights: int
    """Of the model, without its MTP layer."""
    checkpoint_bytes: int
    output_bytes: int
    predicted: Needs
    cost: Cost
    """Its disk is that of the job's folder."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """The inverse of `asdict`."""
        return cls(
            **values
            | {
                "case": Case(**values["case"]),
                "predicted": Needs(**values["predicted"]),
                "cost": Cost(**values["cost"]),
            }
        )


def run_case(case: Case, work: Path) -> Run:
    """Write the checkpoint into `work`, export it, and count."""
    model = case.model
    checkpoint = write_shaped_r1(model, work / "checkpoint")
    output = work / "out"
    program = [sys.executable, "-m", "tightfit"]
    command = [*program, *case.command(str(checkpoint), str(output))]
    planned = subprocess.run(
        [*command, "--dry-run", "--json"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    cost = measure(command, log=work / "log", watched=output / JOB_FOLDER)
    return Run(
        case=case,
        n_weights=count_weights(model),
        checkpoint_bytes=_size(checkpoint, "*.safetensors"),
        output_bytes=_size(output, "*.gguf"),
        predicted=Needs(**json.loads(planned)["job"]),
        cost=cost,
    )


def run_cases(cases: Sequence[Case], runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Those runs and each new one, which replaces an older one of the same sizes."""
    held = list(runs)
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="tightfit-scale-") as work:
            run = run_case(case, Path(work))
        print(case, f"{run.cost.wall_s:.0f} s, {run.cost.process_bytes / GB:.2f} GB", flush=True)
        held = [other for other in held if other.case != case] + [run]
        yield held


def scale_sections(sweep: Sweep, runs: Sequence[Run]) -> str:
    """What was measured as Markdown: two tables a method."""
    parts = []
    for method in METHODS:
        measured = [run for run in runs if run.case.method == method]
        if not measured:
            continue
        command = " ".join(("tightfit", *measured[0].case.command("CHECKPOINT", "OUT")))
        parts.append(f"### {TITLES[method]}\n\n`{command}`\n")
        measured.sort(key=lambda run: (run.case.hidden, run.case.n_layers, run.case.n_experts))
        over_layers = [run for run in measured if run.case.n_experts == sweep.fixed_experts]
        over_experts = [run for run in measured if run.case.n_layers == sweep.fixed_layers]
        parts += [_table(over_layers), _table(over_experts)]
    return "\n".join(parts)


def _table(runs: Sequence[Run]) -> str:
    columns = (
        "hidden",
        "layers",
        "experts",
        "weights (10^9)",
        "predicted memory (GB)",
        "largest process (GB)",
        "all processes (GB)",
        "with mapped files (GB)",
        "time (s)",
        "CPU s per 10^9 weights",
        "predicted scratch (GB)",
        "scratch (GB)",
        "output (GB)",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    lines += [f"| {' | '.join(_row(run))} |" for run in runs]
    return "\n".join(lines) + "\n"


def _row(run: Run) -> list[str]:
    cost, predicted = run.cost, run.predicted
    billions = run.n_weights / BILLION
    return [
        str(run.case.hidden),
        str(run.case.n_layers),
        str(run.case.n_experts),
        f"{billions:.2f}",
        f"{predicted.peak_memory_bytes / GB:.2f}",
        f"{cost.process_bytes / GB:.2f}",
        f"{cost.tree_bytes / GB:.2f}",
        f"{cost.tree_rss_bytes / GB:.2f}",
        f"{cost.wall_s:.0f}",
        f"{cost.cpu_s / billions:.0f}",
        f"{predicted.scratch_bytes / GB:.2f}",
        f"{cost.disk_bytes / GB:.2f}",
        f"{run.output_bytes / GB:.2f}",
    ]


def read_runs(results: Path) -> list[Run]:
    """The runs of a results file; none where it is not there."""
    if not results.exists():
        return []
    return [Run.from_json(values) for values in json.loads(results.read_text(encoding="utf-8"))]


def write_scale(
    methods: Sequence[str] = tuple(METHODS),
    hidden: int | None = None,
    *,
    only: tuple[int, int] | None = None,
    missing: bool = False,
) -> None:
    """Measure and write `docs/scale.json` and the part of `docs/scale.md`.

    `only` is one number of layers and of experts; None: the whole sweep.
    """
    runs = read_runs(RESULTS)
    there = {run.case for run in runs} if missing else set()
    cases = []
    for method in methods:
        width = hidden or HIDDEN[method]
        if only is None:
            cases += FULL.cases(method, width)
        else:
            n_layers, n_experts = only
            cases.append(Case(method=method, n_layers=n_layers, n_experts=n_experts, hidden=width))
    # At once, so that a document without the marks is found now and not after hours.
    replace_part(DOCUMENT, PART, scale_sections(FULL, runs))
    for so_far in run_cases([case for case in cases if case not in there], runs):
        RESULTS.write_text(json.dumps([asdict(run) for run in so_far], indent=1) + "\n")
        replace_part(DOCUMENT, PART, scale_sections(FULL, so_far))


def _size(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--only", nargs=2, type=int, metavar=("LAYERS", "EXPERTS"))
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        cases = [case for name in options.method for case in QUICK.cases(name, QUICK_HIDDEN)]
        *_, runs = run_cases(cases, [])
        print(scale_sections(QUICK, runs))
        return
    only = tuple(options.only) if options.only else None
    write_scale(options.method, options.hidden, only=only, missing=options.missing)


if __name__ == "__main__":
    main()
