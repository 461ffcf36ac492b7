"""On an accelerator the host starts the whole column loop without asking for a number."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tightfit.quant.algorithms import column_loop
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.registry import GRIDS

N_ROWS, N_COLUMNS = 8, 512


def moved(visit: column_loop.Visit) -> column_loop.Visit:
    """To the meta device, which has shapes and no numbers."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to("meta")

    return replace(
        visit,
        layout_I=move(visit.layout_I),
        parts=[replace(part, visit_S=move(part.visit_S)) for part in visit.parts],
        upper_II=move(visit.upper_II),
        importance_I=move(visit.importance_I),
        dead_I=move(visit.dead_I),
    )


@pytest.mark.parametrize("name", [name for name in GRIDS if "-g32-" not in name])
def test_the_loop_asks_for_no_number(name: str) -> None:
    """Whoever reads a value of a meta tensor gets an error, as he would wait for a GPU."""
    grid = GRIDS[name]
    x_TI = torch.randn(2 * N_COLUMNS, N_COLUMNS)
    visit = column_loop.plan_visit(x_TI.T @ x_TI, grid.span, Order.STATIC, 0.01)
    weights = [torch.empty(N_ROWS, N_COLUMNS, device="meta") for _ in range(2)]
    matrices = [column_loop._Matrix(w_OI, moved(visit), grid) for w_OI in weights]
    widths = [len(part.visit_S) for part in visit.parts]
    column_loop._visit_columns(matrices, widths, grid)
    with pytest.raises(RuntimeError, match="meta"):
        matrices[0].solved(Order.STATIC)  # checks what was searched, after the loop
