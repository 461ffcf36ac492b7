"""Orders in which GPTQ visits the columns.

Columns quantized late have fewer columns left to absorb their error, so those with large
activations (a large diagonal of H) should come first. How far one may reorder depends on when the
grid's parameters are fixed:

- `natural`: left to right, parameters fitted as each span begins.
- `group-aware`: spans in descending total diagonal, columns inside a span in descending diagonal;
  parameters fitted as each span begins. Storage keeps its order, no `g_idx`. (The "group-aware
  reordering" of gptqmodel.)
- `static`: parameters fitted beforehand on the original weights, columns in descending diagonal
  over the whole matrix. Storage keeps its order, no `g_idx`.
- `act-order`: columns in descending diagonal, and the groups formed in that order: the stored
  tensor needs `g_idx` (GPTQ's `desc_act`). Integer groups only.

Shape legend: I columns, S columns of a span.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Order(StrEnum):
    """Orders in which GPTQ visits the columns."""

    NATURAL = "natural"
    GROUP_AWARE = "group-aware"
    STATIC = "static"
    ACT_ORDER = "act-order"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """Columns that are visited in a row and whose parameters are fixed before the first."""

    start: int
    """First stored column; the segment is contiguous in storage."""
    visit_S: Tensor
    """int64 (S,): offsets from `start` in the order of the visit."""

    @property
    def columns_S(self) -> Tensor:
        """int64 (S,): stored columns in the order of the visit."""
        return self.start + self.visit_S


def segments(order: Order, diagonal_I: Tensor, span: int) -> list[Segment]:
    """The visit of all columns, for a grid of that span (0: all columns).

    Act-order is `natural` on columns that the caller has already permuted (`descending`).
    """
    n_columns = diagonal_I.shape[0]
    width = n_columns if span == 0 or order is Order.STATIC else span
    starts = list(range(0, n_columns, width))
    if order in (Order.NATURAL, Order.ACT_ORDER):
        return [
            Segment(
                start=start,
                visit_S=torch.arange(min(width, n_columns - start), device=diagonal_I.device),
            )
            for start in starts
        ]
    totals = torch.stack([diagonal_I[start : start + width].sum() for start in starts])
    return [
        Segment(
            start=starts[which],
            visit_S=descending(diagonal_I[starts[which] : starts[which] + width]),
        )
        for which in descending(totals).tolist()
    ]


def descending(values_I: Tensor) -> Tensor:
    """int64 positions of the values from the largest to the smallest, ties left to right."""
    return torch.argsort(values_I, descending=True, stable=True)
