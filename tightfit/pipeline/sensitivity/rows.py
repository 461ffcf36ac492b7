"""Which rows of a matrix stand for all of them.

Rows of one matrix have much the same relative error on a grid, so a sample tells it:

    sum over all rows of e  ~  (sum over the sample of e) / (sum over the sample of s) * (sum of s)

where s is known for every row and nearly proportional to e (the ratio estimator of survey
sampling; Cochran, "Sampling Techniques", chapter 6). Where few rows carry nearly all of s, as in a
head, rows are drawn in proportion to s instead (the same book, section 9A).

Shape legend: O rows, S sampled rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED_ROWS = 256
"""Of a linear. With 128 predicted and measured KL of SmolLM2-135M scatter by 0.35 (standard
deviation of the logarithm) instead of 0.20, and GPTQ takes as long: its time goes by columns."""
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnRows:
    """Rows drawn in proportion to a size."""

    rows_S: Tensor
    """int64, ascending, each once."""
    weight_S: Tensor
    """float32: the sum over all rows of f is estimated by sum(weight * f) over these."""


def spread_rows(n_rows: int, n_sampled: int = SAMPLED_ROWS) -> Tensor:
    """int64 (S,): one random row of each of `n_sampled` equal parts, the same ones every time.

    Even steps would meet the same places of every attention head.
    """
    if n_rows <= n_sampled:
        return torch.arange(n_rows)
    generator = torch.Generator().manual_seed(_SEED)
    edges = torch.linspace(0, n_rows, n_sampled + 1, dtype=torch.float64)
    offset = torch.rand(n_sampled, generator=generator, dtype=torch.float64)
    drawn = (edges[:-1] + offset * edges.diff()).long()
    rows_S: Tensor = torch.unique(drawn.clamp(max=n_rows - 1))
    return rows_S


def likely_rows(size_O: Tensor, n_sampled: int) -> DrawnRows:
    """Systematic sampling with probability proportional to size; sizes >= 0, not all 0."""
    cumulative_O = size_O.double().cumsum(0)
    total = cumulative_O[-1]
    points = (torch.arange(n_sampled, device=size_O.device) + 0.5) / n_sampled * total
    drawn = torch.searchsorted(cumulative_O, points).clamp(max=len(size_O) - 1)
    rows_S, counts_S = torch.unique(drawn, return_counts=True)
    weight_S = counts_S * total / (n_sampled * size_O[rows_S].double())
    return DrawnRows(rows_S=rows_S, weight_S=weight_S.float())
