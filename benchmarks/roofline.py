"""GPTQ at the roof of a GPU: computed on paper, nothing of it measured.

    python -m benchmarks.roofline

writes a part of `docs/performance.md`. A stage (`roofline_work`) takes at the roof

    the longest of operations / peak, bytes / bandwidth, bytes over PCIe / speed of PCIe

(Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009). Stages follow one
another.
"""

from dataclasses import dataclass
from typing import Final

from benchmarks.documents import DOCS, write_part
from benchmarks.r1_cost import LAUNCH_S, LENGTH, N_TOKENS
from benchmarks.roofline_work import (
    BATCH_EXPERTS,
    COLUMN_KERNELS,
    Amounts,
    Work,
    dense_layer,
    expert_batch,
)
from tightfit.quant.algorithms.column_loop import BLOCK_COLUMNS
from tightfit.targets.profile import load_target

DOCUMENT: Final = DOCS / "performance.md"
PART: Final = "roofline"
DENSE_MODEL, EXPERT_MODEL = "r1-distill-qwen-7b", "r1"
PCIE_BYTES_S: Final = 16e9 * 16 * 128 / 130 / 8
"""PCIe 4.0 x16, one direction: 16 GT/s a lane, 130 bits on the line for 128 (PCI-SIG, PCI Express
Base Specification 4.0). All four boards have it."""
TERA, GIGA = 1e12, 1e9
_MINUTE_S: Final = 60
_HEAD: Final = f"""## GPUs, a roofline on paper

**Computed, not measured**: nothing of this part ran on a GPU. Written by
`python -m benchmarks.roofline`. It is the least time of GPTQ (W4, groups of 128) with
{N_TOKENS // LENGTH} x {LENGTH} calibration tokens, stage by stage: the longest of operations at the
peak (of passes, Hessians and errors with TF32 factors, which `--calib-precision medium` allows,
else in float32 without tensor cores), bytes at the peak bandwidth of the GPU's memory, and bytes at
that of PCIe 4.0 x16 ({PCIE_BYTES_S / GIGA:.1f} GB/s), and which of them it is. Stages follow one
another; copies that overlap with work would hide behind it. Bytes are float32, each matrix once a
pass; the column loop, in blocks of {BLOCK_COLUMNS}, is counted as the code does it. Hidden states
stay in main memory between passes. Elementwise work of the forward and the fits of the scales are
left out. The last row is no roof: it is what starting the loop's kernels from Python takes,
{COLUMN_KERNELS} a column at an assumed {LAUNCH_S * 1e6:.0f} µs. Sources of the figures stand in
`benchmarks/roofline.py` and in the targets' profiles.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What the roof is made of."""

    title: str
    target: str
    """Profile with the bandwidth of its memory."""
    cores: int
    """FP32 lanes; each multiplies and adds in a cycle."""
    boost_hz: float
    tf32_times: int = 1
    """Peak of tensor cores with TF32 factors, without sparsity, over that of float32. On GeForce
    both are the same (NVIDIA's whitepapers of GA102 and Ada: RTX 3080 29.8, RTX 4090 82.6)."""

    @property
    def flops_s(self) -> float:
        """Peak in float32, without tensor cores."""
        return 2 * self.cores * self.boost_hz

    @property
    def tf32_flops_s(self) -> float:
        """Peak with TF32 factors."""
        return self.tf32_times * self.flops_s

    @property
    def bytes_s(self) -> float:
        """Peak bandwidth of its memory."""
        return load_target(self.target).bandwidth_gb_s * GIGA


GPUS: Final = (
    # NVIDIA's specifications of the GeForce RTX 3060 family: 3584 cores, boost 1.78 GHz, both.
    Gpu(title="RTX 3060 8 GB", target="rtx3060-8gb", cores=3584, boost_hz=1.78e9),
    Gpu(title="RTX 3060 12 GB", target="rtx3060-12gb", cores=3584, boost_hz=1.78e9),
    # NVIDIA's specifications of the GeForce RTX 4090; the Ada whitepaper's 82.6 TFLOPS of FP32.
    Gpu(title="RTX 4090", target="rtx4090-24gb", cores=16384, boost_hz=2.52e9),
    # NVIDIA A100 whitepaper; the data sheet's 19.5 TFLOPS of FP32, 156 of TF32.
    Gpu(title="A100 80 GB", target="a100-80gb", cores=6912, boost_hz=1.41e9, tf32_times=8),
)


def at_roof(amounts: Amounts, gpu: Gpu) -> tuple[float, str]:
    """Seconds, and what bounds them."""
    seconds = {
        "compute": amounts.flops / gpu.flops_s + amounts.tf32_flops / gpu.tf32_flops_s,
        "bandwidth": amounts.memory_bytes / gpu.bytes_s,
        "PCIe": amounts.pcie_bytes / PCIE_BYTES_S,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def total_s(work: Work, gpu: Gpu) -> float:
    """All stages one after the other."""
    return sum(at_roof(amounts, gpu)[0] for amounts in work.stages.values())


def launches_s(work: Work) -> float:
    """Of the column loop's kernels; not at a roof but from Python."""
    return work.n_columns * COLUMN_KERNELS * LAUNCH_S


def roofline_sections() -> str:
    """The document's part."""
    works = (dense_layer(DENSE_MODEL), expert_batch(EXPERT_MODEL, BATCH_EXPERTS))
    return "\n".join([_HEAD, _gpu_table(), *map(work_section, works)])


def work_section(work: Work) -> str:
    """Amounts, and seconds with their bound and share on each GPU."""
    columns = ("stage", "TFLOP", "GB", "GB over PCIe", *(gpu.title for gpu in GPUS))
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, amounts in work.stages.items():
        figures = (
            f"{(amounts.flops + amounts.tf32_flops) / TERA:.2f}",
            f"{amounts.memory_bytes / GIGA:.1f}",
            f"{amounts.pcie_bytes / GIGA:.2f}",
            *(_cell(amounts, work, gpu) for gpu in GPUS),
        )
        lines.append(f"| {name} | {' | '.join(figures)} |")
    totals = [total_s(work, gpu) for gpu in GPUS]
    launches = f"{launches_s(work):.2f} s"
    rows = (
        ("together", [f"{seconds:.2f} s" for seconds in totals]),
        (work.all_alike, [f"{s * work.n_alike / _MINUTE_S:.1f} min" for s in totals]),
        ("(starting the loop's kernels)", [launches] * len(GPUS)),
    )
    lines += [f"| {name} | | | | {' | '.join(cells)} |" for name, cells in rows]
    return f"### {work.title}\n\n" + "\n".join(lines) + "\n"


def _cell(amounts: Amounts, work: Work, gpu: Gpu) -> str:
    seconds, bound = at_roof(amounts, gpu)
    return f"{seconds:.3f} s, {bound}, {100 * seconds / total_s(work, gpu):.0f} %"


def _gpu_table() -> str:
    lines = ["| | TFLOP/s | TF32 | GB/s | balance (FLOP a byte) |", "|---|---:|---:|---:|---:|"]
    for gpu in GPUS:
        balance = gpu.flops_s / gpu.bytes_s
        peaks = f"{gpu.flops_s / TERA:.1f} | {gpu.tf32_flops_s / TERA:.1f}"
        lines.append(f"| {gpu.title} | {peaks} | {gpu.bytes_s / GIGA:.0f} | {balance:.0f} |")
    return "\n".join(lines) + "\n"


def write_roofline() -> None:
    """Write the part of `docs/performance.md`."""
    write_part(DOCUMENT, PART, roofline_sections())


if __name__ == "__main__":
    write_roofline()
