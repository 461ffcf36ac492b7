"""Rounding errors of matrices on every grid, and the losses that they cause.

Rows are quantized as the walk will do it: by GPTQ, or rounded to nearest under the importance
matrix. AWQ's scales are left out: they belong to the grids of a whole block, and those are not yet
chosen. Rows that share parameters on a grid (FP8 in blocks and per tensor) share them within the
sample, whose range is much the same.

Shape legend: O rows, I columns, S sampled rows, Q sequences (each counted once per draw).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tightfit.pipeline.quantize import Method
from tightfit.pipeline.sensitivity.gradients import LinearScores
from tightfit.quant.algorithms.gptq import solve_shared
from tightfit.quant.algorithms.hessian import InputStatistics
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid


def rounding_errors(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Sequence[str]],
    statistics: InputStatistics | None,
    method: Method,
) -> Iterator[tuple[str, str, Tensor]]:
    """Name, grid and error (S, I) of matrices that read one input, each on its grids.

    Without statistics they are rounded as the walk rounds an embedding.
    """
    if statistics is None or not method.compensates:
        importance_I = None if statistics is None else statistics.importance_I
        for name, w_SI in weights.items():
            for grid_name in grids[name]:
                grid = get_grid(grid_name)
                rounded_SI = grid.dequantize(rtn(w_SI, grid, importance_I))
                yield name, grid_name, rounded_SI - w_SI
        return
    # One call per span: the Hessian is factored once for all grids of a span, then freed.
    pairs = [(name, get_grid(grid)) for name in weights for grid in grids[name]]
    for span in sorted({grid.span for _, grid in pairs}):
        alike = {f"{grid.name} {name}": (name, grid) for name, grid in pairs if grid.span == span}
        solved = solve_shared(
            {key: weights[name] for key, (name, _) in alike.items()},
            statistics.hessian_II,
            {key: grid for key, (_, grid) in alike.items()},
            method.gptq,
        )
        for key, (name, grid) in alike.items():
            yield name, grid.name, grid.dequantize(solved[key].tensor) - weights[name]


def linear_loss_nats(
    difference_SI: Tensor, w_OI: Tensor, scores: LinearScores, importance_I: Tensor, n_tokens: int
) -> float:
    """Predicted mean KL per token of a linear whose sampled rows are off by this.

    The ratio estimator of `rows` with s_o = E[g_o^2] sum_j H_jj w_oj^2. `n_tokens` counts tokens
    once per draw.
    """
    projected_QS = torch.einsum("qsi,si->qs", scores.gradient_QSI, difference_SI)
    sampled = projected_QS.double().square().sum().item() / n_tokens
    size_O = scores.power_O.double() * (w_OI.square() @ importance_I).double()
    sampled_size = size_O[scores.rows_S].sum().item()
    if not sampled_size:
        return 0.0
    return 0.5 * sampled * size_O.sum().item() / sampled_size
