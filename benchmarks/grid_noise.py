"""Relative noise of round-to-nearest on every grid: the constants of `targets/allocation/noise.py`.

    python -m benchmarks.grid_noise

For weights w ~ N(0, 1) and importances h of columns, log-normal with sigma 1 (mean squares of
activations spread so, over a factor of a few), rounded with that importance:

    noise = sum_ij h_j (q_ij - w_ij)^2 / sum_ij h_j w_ij^2

Printed as the mean over some samples with its relative standard error.

Shape legend: O output rows, I input columns.
"""

import statistics

import torch
from torch import Tensor

from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Grid
from tightfit.quant.registry import GRIDS

SHAPE_OI = (128, 4096)
N_SAMPLES = 8
IMPORTANCE_SIGMA = 1.0
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16}


def sample(seed: int) -> tuple[Tensor, Tensor]:
    """Weights (O, I) and importances (I)."""
    generator = torch.Generator().manual_seed(seed)
    w_OI = torch.randn(SHAPE_OI, generator=generator)
    normal_I = torch.randn(SHAPE_OI[1], generator=generator)
    return w_OI, torch.exp(IMPORTANCE_SIGMA * normal_I)


def relative_error(rounded_OI: Tensor, w_OI: Tensor, importance_I: Tensor) -> float:
    """Weighted squared error, of the weighted squares."""
    error = (importance_I * (rounded_OI - w_OI).double() ** 2).sum()
    return float(error / (importance_I * w_OI.double() ** 2).sum())


def grid_noise(grid: Grid, seed: int) -> float:
    """Of one sample."""
    w_OI, importance_I = sample(seed)
    rounded_OI = grid.dequantize(rtn(w_OI, grid, importance_I))
    return relative_error(rounded_OI, w_OI, importance_I)


def float_noise(dtype: torch.dtype, seed: int) -> float:
    """Of one sample."""
    w_OI, importance_I = sample(seed)
    return relative_error(w_OI.to(dtype).float(), w_OI, importance_I)


def main() -> None:
    """Print a line for each grid."""
    torch.set_num_threads(1)
    for name in (*GRIDS, *FLOATS):
        found = [
            grid_noise(GRIDS[name], seed) if name in GRIDS else float_noise(FLOATS[name], seed)
            for seed in range(N_SAMPLES)
        ]
        mean = statistics.mean(found)
        error = statistics.stdev(found) / N_SAMPLES**0.5 / mean
        print(f'    "{name}": {mean:.3e},  # +- {error:.1%}', flush=True)


if __name__ == "__main__":
    main()
