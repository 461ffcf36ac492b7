"""Speed side by side in one run: our fit of each ggml grid against ggml's own C kernels, and GPTQ.

    python -m benchmarks.speed

Both round the same weights under the same importance matrix, in turn (A B A B ...), one thread;
figures are medians of CPU seconds, and the ratio is the median of the pairs. Ours searches further
than ggml (`docs/quality.md` shows what that buys), in torch instead of C. GPTQ is timed on the same
matrix with everything it does: factorization, fits, column loop.

Shape legend: O output rows, I input columns.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from support import ggml_library

from tightfit.pipeline.quantize import Algorithm
from tightfit.quant.algorithms.gptq import gptq
from tightfit.quant.algorithms.hessian import HessianAccumulator
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Grid
from tightfit.quant.grids.ggml import GGML_GRIDS

ROWS, COLUMNS = 1024, 2048
TOKENS = 8192
ROUNDS = 5
MILLION = 1e6
KIB_PER_MB = 1e6 / 1024
"""Linux counts the peak in KiB."""


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def performance_table() -> str:
    """The comparison as a Markdown table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    w_OI = 0.02 * torch.randn(ROWS, COLUMNS, generator=generator)
    mixing_II = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    accumulator = HessianAccumulator(COLUMNS)
    accumulator.add(torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing_II)
    seen = accumulator.statistics()
    weights, importance = w_OI.numpy(), np.ascontiguousarray(seen.importance_I.numpy())
    lines = [
        "| type | ours (M weights / CPU s) | ggml | ours ÷ ggml, time | GPTQ (M weights / CPU s) |",
        "|---|---:|---:|---:|---:|",
    ]
    for grid in GGML_GRIDS:

        def ours_once(grid: Grid = grid) -> object:
            return grid.pack(rtn(w_OI, grid, seen.importance_I))

        def theirs_once(grid: Grid = grid) -> object:
            return ggml_library.quantize(grid.name, weights, importance)

        pairs = [(cpu_seconds(ours_once), cpu_seconds(theirs_once)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        solved = cpu_seconds(functools.partial(gptq, w_OI, seen.hessian_II, grid))
        size = w_OI.numel() / MILLION
        lines.append(
            f"| {grid.name} | {size / ours:.1f} | {size / theirs:.1f} | {ratio:.2f} | "
            f"{size / solved:.2f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def export_table() -> str:
    """The whole job on the embedded model, as a Markdown table: one process a method."""
    lines = ["| method | CPU s | peak memory (MB) |", "|---|---:|---:|"]
    for algorithm in Algorithm:
        with tempfile.TemporaryDirectory() as folder:
            fixed = ["export", "-t", "rtx3060-8gb", "--scheme", "q4_k_m"]
            arguments = [*fixed, "--method", algorithm.value, "-o", folder]
            process = subprocess.Popen(
                [sys.executable, "-m", "tightfit", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, status
        cpu_s = usage.ru_utime + usage.ru_stime
        lines.append(f"| {algorithm.value} | {cpu_s:.1f} | {usage.ru_maxrss / KIB_PER_MB:.0f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(performance_table())
    print(export_table())
