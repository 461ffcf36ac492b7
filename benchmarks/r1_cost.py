"""Time and cost of exporting DeepSeek-R1 on one A100, on eight and on two nodes: worked out.

    python -m benchmarks.r1_cost

writes parts of `docs/scale.md`. Nothing of it ran on a GPU. The amounts come from R1's sizes
(`r1_work`), the unit costs of CPU threads from `docs/r1_units.json` and `docs/scale.json`, the rest
are the assumptions below. A GPU's time is

    matrix products / (peak * EFFICIENCY)
    + the longer of operations * LAUNCH_S and bytes / (bandwidth * EFFICIENCY)
    + copies in host memory / HOST_BYTES_S + weights loaded * their CPU seconds

With states from the quantized model, N GPUs share the experts of one block after the other:
passing + trunks + experts / N. With those of the original blocks do not wait, but one process
passes the states on: the longer of passing and (passing + trunks + experts) / N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.documents import replace_part
from benchmarks.r1_units import Units, read_units
from benchmarks.r1_work import CalibratedWork, Work, calibrated_work
from benchmarks.scale import DOCUMENT, RESULTS, Run, read_runs
from tightfit.calib.models import KnownModel, find_model
from tightfit.targets.job_needs import JobSize, fitting_group, peak_memory_bytes, scratch_bytes
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import load_target

MODEL = "r1"
SCHEME = "experts-q4_k"
TARGET = "a100x8-80gb"
N_TOKENS = 128 * 2048
"""What `export` calibrates on at most unless told otherwise."""
LENGTH = 2048
CHECKPOINT_BYTES = 689e9
"""685e9 weights with the MTP layer, a byte each, embedding and head in two."""
A100_FLOPS = 19.5e12
"""FP32 without tensor cores (NVIDIA's data sheet of the A100 80 GB): what TF32 would save in passes
and Hessians, which `--calib-precision medium` allows, is left out."""
# Assumptions.
EFFICIENCY = 0.6
"""Of peak arithmetic and of peak bandwidth."""
LAUNCH_S = 8e-6
"""A small operation from Python to the GPU."""
HOST_BYTES_S = 8e9
"""Copying states, one thread."""
STORAGE_BYTES_S = 2e9
"""Reading or writing, all machines together."""
CORES_PER_GPU = 12
DOLLARS_PER_GPU_HOUR = 2.0
HOUR_S = 3600.0
BILLION = 1e9
MACHINES = {
    "one A100": "a100-80gb",
    "eight A100": "a100x8-80gb",
    "two nodes of eight": "a100x16-80gb",
}
"""By title the profile that holds the number of GPUs and their bandwidth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What works."""

    title: str
    n_gpus: int
    bandwidth_bytes_s: float
    """Of one GPU."""

    @classmethod
    def of(cls, title: str) -> "Machine":
        """One of `MACHINES`."""
        target = load_target(MACHINES[title])
        return cls(
            title=title,
            n_gpus=target.device_count,
            bandwidth_bytes_s=target.bandwidth_gb_s * BILLION,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Seconds of an export by what passes; stages follow one another."""

    machine: Machine
    states: str
    """What the calibration's states come from; or that there are none."""
    quantizing_s: float
    files_s: float
    proving_s: float

    @property
    def hours(self) -> float:
        """From start to end."""
        return (self.quantizing_s + self.files_s + self.proving_s) / HOUR_S

    @property
    def dollars(self) -> float:
        """All GPUs held to the end."""
        return self.hours * self.machine.n_gpus * DOLLARS_PER_GPU_HOUR


def gpu_seconds(work: Work, machine: Machine, units: Units) -> float:
    """Of one GPU and the CPU thread that feeds it."""
    elementwise_s = max(
        work.operations * LAUNCH_S,
        work.traffic_bytes / (machine.bandwidth_bytes_s * EFFICIENCY),
    )
    return (
        work.flops / (A100_FLOPS * EFFICIENCY)
        + elementwise_s
        + work.copied_bytes / HOST_BYTES_S
        + work.loaded_weights * units.load_s_per_billion / BILLION
    )


def calibrated(
    work: CalibratedWork, machine: Machine, units: Units, *, from_original: bool
) -> Estimate:
    """AWQ then GPTQ."""
    passing, trunks, experts = (
        gpu_seconds(part, machine, units) for part in (work.passing, work.trunks, work.experts)
    )
    quantizing = passing + trunks + experts / machine.n_gpus
    if from_original:
        quantizing = max(passing, (passing + trunks + experts) / machine.n_gpus)
    # The blocks that states pass through: those of the checkpoint, or of the units.
    passed = CHECKPOINT_BYTES if from_original else _output_bytes()
    return _estimate(
        machine, "original" if from_original else "quantized", quantizing, passed, units
    )


def rounded(run: Run, machine: Machine, units: Units) -> Estimate:
    """Without calibration, on the CPU cores of the machine; from the CPU time of a measured run."""
    per_billion = run.cost.cpu_s / (run.n_weights / BILLION) - units.prove_s_per_billion
    quantizing = per_billion * _model().n_parameters / BILLION / (CORES_PER_GPU * machine.n_gpus)
    return _estimate(machine, "none (CPU)", quantizing, 0.0, units)


def widest_run(runs: Sequence[Run], method: str) -> Run | None:
    """The measured run of a method that is most like R1: the widest, of those the largest."""
    measured = [run for run in runs if run.case.method == method]
    return max(measured, key=lambda run: (run.case.hidden, run.n_weights), default=None)


def work_table() -> str:
    """What is computed, in Markdown."""
    work = _work()
    rows = (
        ("states through the blocks", work.passing),
        ("trunks and head", work.trunks),
        ("routed experts", work.experts),
        ("together", work.passing + work.trunks + work.experts),
    )
    lines = [
        "| | 10^15 FLOP | 10^6 operations | TB they move | TB copied | 10^9 loaded | hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    machine, units = Machine.of("one A100"), read_units()
    for title, part in rows:
        amounts = (
            f"{part.flops / 1e15:.1f}",
            f"{part.operations / 1e6:.0f}",
            f"{part.traffic_bytes / 1e12:.0f}",
            f"{part.copied_bytes / 1e12:.1f}",
            f"{part.loaded_weights / BILLION:.0f}",
            f"{gpu_seconds(part, machine, units) / HOUR_S:.1f}",
        )
        lines.append(f"| {title} | {' | '.join(amounts)} |")
    return "\n".join(lines) + "\n"


def cost_table() -> str:
    """Time and cost, in Markdown."""
    work, units = _work(), read_units()
    run = widest_run(read_runs(RESULTS), "rtn")
    estimates = []
    for machine in map(Machine.of, MACHINES):
        estimates += [
            calibrated(work, machine, units, from_original=from_original)
            for from_original in (False, True)
        ]
        if run is not None:
            estimates.append(rounded(run, machine, units))
    lines = [
        "| machine | states from | quantizing (h) | files (h) | proof (h) | together (h) | $ |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {of.machine.title} | {of.states} | {of.quantizing_s / HOUR_S:.1f} | "
        f"{of.files_s / HOUR_S:.1f} | {of.proving_s / HOUR_S:.1f} | {of.hours:.1f} | "
        f"{of.dollars:.0f} |"
        for of in estimates
    ]
    return "\n".join(lines) + "\n"


def units_table() -> str:
    """Measured unit costs, in Markdown."""
    units, runs = read_units(), read_runs(RESULTS)
    lines = [
        "| measured | |",
        "|---|---:|",
        f"| FP8 to float32, checked | {units.load_s_per_billion:.1f} CPU s per 10^9 weights |",
        f"| a GGUF read back, compared | {units.prove_s_per_billion:.1f} CPU s per 10^9 weights |",
        f"| SHA-256 | {units.sha256_s_per_gb:.2f} CPU s per GB |",
    ]
    for method, title in (
        ("rtn", "without calibration"),
        ("gptq", "calibrated, GPTQ, 4096 tokens"),
    ):
        run = widest_run(runs, method)
        shown = (
            f"{run.cost.cpu_s / (run.n_weights / BILLION):.0f} CPU s per 10^9 weights "
            f"(hidden {run.case.hidden}, {run.case.n_layers} layers, {run.case.n_experts} experts)"
            if run
            else f"@@not measured yet: python -m benchmarks.scale --method {method}@@"
        )
        lines.append(f"| a whole export {title} | {shown} |")
    return "\n".join(lines) + "\n"


def memory_table() -> str:
    """Predicted needs of one worker, in Markdown."""
    plan = make_plan(_model().dimensions, load_target(TARGET), model=MODEL, scheme=SCHEME)
    kinds = (
        ("awq-gptq", True, True, N_TOKENS),
        ("gptq", True, False, N_TOKENS),
        ("awq", False, True, N_TOKENS),
        ("rtn, calibrated", False, False, N_TOKENS),
        ("rtn, `--calib none` or `imatrix:`", False, False, None),
    )
    lines = [
        "| method | memory a worker (GB) | scratch (GB) | result (GB) |",
        "|---|---:|---:|---:|",
    ]
    for title, compensates, scales, n_tokens in kinds:
        size = JobSize(
            dimensions=_model().dimensions,
            storage=plan.storage,
            compensates=compensates,
            scales=scales,
            n_tokens=n_tokens,
            streamed=n_tokens is None,
        )
        peak = peak_memory_bytes(size, fitting_group(size, None))
        scratch = scratch_bytes(size, plan.chosen.file_bytes)
        result = plan.chosen.file_bytes / BILLION
        lines.append(f"| {title} | {peak / BILLION:.1f} | {scratch / BILLION:.0f} | {result:.0f} |")
    return "\n".join(lines) + "\n"


PARTS = {
    "r1 memory": memory_table,
    "r1 units": units_table,
    "r1 work": work_table,
    "r1 cost": cost_table,
}


def _estimate(
    machine: Machine, states: str, quantizing_s: float, passed_bytes: float, units: Units
) -> Estimate:
    """Around what is quantized: hashing, reading, writing, and the proof, by one process."""
    output = _output_bytes()
    # Read: to hash it, and to quantize it. Of the output: units written and read again, the file
    # written, and read twice for the proof and the manifest, the units once more for the proof.
    moved = 2 * CHECKPOINT_BYTES + passed_bytes + 6 * output
    hashed_gb = (CHECKPOINT_BYTES + 3 * output) / BILLION
    return Estimate(
        machine=machine,
        states=states,
        quantizing_s=quantizing_s,
        files_s=moved / STORAGE_BYTES_S + hashed_gb * units.sha256_s_per_gb,
        proving_s=_model().n_parameters / BILLION * units.prove_s_per_billion,
    )


@cache
def _model() -> KnownModel:
    known = find_model(MODEL)
    assert known is not None
    return known


@cache
def _work() -> CalibratedWork:
    return calibrated_work(_model().dimensions, N_TOKENS, LENGTH)


@cache
def _output_bytes() -> int:
    plan = make_plan(_model().dimensions, load_target(TARGET), model=MODEL, scheme=SCHEME)
    return plan.chosen.file_bytes


def main() -> None:
    """Write the document's parts."""
    for name, table in PARTS.items():
        replace_part(DOCUMENT, name, table())


if __name__ == "__main__":
    main()
