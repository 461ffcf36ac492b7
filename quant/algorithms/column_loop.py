"""The column loop of GPTQ over several matrices of one shape, each under its own Hessian.

The loop is bound by the start of many small operations, one column of one matrix each, so the rows
of all matrices are rounded side by side. Only steps that act on single weights are joined: fits,
factors and the corrections that leave a block are those of each matrix alone, on memory of its own.
So a matrix gets the same bits alone and in any company.

Working matrices are transposed, (I, O), so that a column is contiguous, and corrections leave a
block of 32 columns by one GEMM. On the CPU a kernel (`block_kernel`) walks through the block. An
accelerator never waits for the host: what is checked is checked before the loop and after it.

Shape legend: E matrices, O output rows of each, N = E * O rows side by side, I input columns,
K columns of a segment, B columns of a block, R columns of a block that are still to come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.block_kernel import round_block
from tightfit.quant.algorithms.cholesky import factor_inverse
from tightfit.quant.algorithms.ordering import Order, Segment, descending, segments
from tightfit.quant.grid import Grid, Lattice, join_params
from tightfit.quant.tensor import Params, QuantizedTensor

BLOCK_COLUMNS = 32
"""Columns between lazy updates; divides every span."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Visit:
    """All that depends on the Hessian and the span, but not on the weights.

    Indices are into the layout: storage order, or for act-order the permuted columns.
    """

    layout_I: Tensor
    """int64 (I,): stored column at each place of the layout."""
    parts: list[Segment]
    upper_II: Tensor
    """U in the order of the visit."""
    importance_I: Tensor
    """Diagonal of H in layout order: weight of each column in the fit."""
    dead_I: Tensor
    """bool (I,), in layout order."""
    damp_fraction: float

    @property
    def columns_I(self) -> Tensor:
        """int64 (I,): places of the layout in the order of the visit."""
        return torch.cat([part.columns_S for part in self.parts])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solved:
    """One matrix after the loop."""

    tensor: QuantizedTensor
    loss_O: Tensor
    """Each row's part of tr((Q - W) H (Q - W)^T)."""


def plan_visit(hessian_II: Tensor, span: int, order: Order, damp_fraction: float) -> Visit:
    """Order the columns and factor the Hessian.

    Raises `QuantizationError` when the Hessian is zero or not positive definite.
    """
    diagonal_I = hessian_II.diagonal()
    layout_I = torch.arange(len(diagonal_I), device=diagonal_I.device)
    if order is Order.ACT_ORDER:
        layout_I = descending(diagonal_I)
        diagonal_I = diagonal_I[layout_I]
    dead_I = diagonal_I == 0
    if dead_I.all():
        raise QuantizationError(
            "the Hessian is zero: no calibration activation reached this linear",
            allowed="a Hessian with at least one positive diagonal entry",
            hint="use more calibration text, or quantize this linear round-to-nearest",
        )
    parts = segments(order, diagonal_I, span)
    visit_I = torch.cat([part.columns_S for part in parts])
    stored_I = layout_I[visit_I]
    visited_II = hessian_II[stored_I][:, stored_I]
    # A dead column is coupled to no other, so any positive number will do; the mean is neutral to
    # the damping.
    visited_II.diagonal()[dead_I[visit_I]] = diagonal_I[~dead_I].mean()
    factor = factor_inverse(visited_II, damp_fraction)
    return Visit(
        layout_I=layout_I,
        parts=parts,
        upper_II=factor.upper_II,
        importance_I=diagonal_I,
        dead_I=dead_I,
        damp_fraction=factor.damp_fraction,
    )


def solve_columns(
    weights: Sequence[Tensor], visits: Sequence[Visit], grid: Grid, order: Order
) -> list[Solved]:
    """Quantize E matrices (O, I) along their visits."""
    together: dict[tuple[int, ...], list[int]] = {}
    for which, visit in enumerate(visits):
        # A narrower span at the edge may come at another time in each matrix.
        widths = tuple(len(part.visit_S) for part in visit.parts)
        together.setdefault(widths, []).append(which)
    solved: dict[int, Solved] = {}
    for members in together.values():
        matrices = [_Matrix(weights[which], visits[which], grid) for which in members]
        _visit_columns(matrices, widths, grid)
        solved |= {
            which: matrix.solved(order) for which, matrix in zip(members, matrices, strict=True)
        }
    return [solved[which] for which in range(len(weights))]


class _Matrix:
    """One matrix on its way through the loop; its columns are rows, in the order of the visit."""

    def __init__(self, w_OI: Tensor, visit: Visit, grid: Grid) -> None:
        self._grid = grid
        self._visit = visit
        visit_I = visit.columns_I
        self._stored_I = visit.layout_I[visit_I]
        w_IO = w_OI.float().T.contiguous().index_select(0, self._stored_I)
        self._w_IO = w_IO.masked_fill_(visit.dead_I[visit_I, None], 0)
        self._codes_IO = torch.empty_like(w_IO, dtype=torch.uint8)
        self._loss_O = w_IO.new_zeros(len(w_OI))
        self._params: dict[int, Params] = {}
        self._lattice = Lattice(scale_OK=w_IO.new_empty(0, 0))

    def fit(self, which: int, start: int) -> None:
        """Fit the segment whose first column is visited at `start`."""
        part = self._visit.parts[which]
        width, n_rows = len(part.visit_S), self._w_IO.shape[1]
        w_KO = self._w_IO.new_empty(width, n_rows)
        w_KO[part.visit_S] = self._w_IO[start : start + width]
        importance_K = self._visit.importance_I[part.start : part.start + width]
        params = self._grid.search(w_KO.T.contiguous(), importance_K[None])
        self._params[part.start] = params
        lattice = self._grid.lattice(params, n_rows, width).columns(part.visit_S)
        self._lattice = _map(lambda part_OK: part_OK.T.contiguous().T, lattice)

    def enter(self, block: slice, offset: int) -> tuple[Tensor, Tensor, Lattice]:
        """Weights (B, O), U (B, B) and lattice of a block, at `offset` of the segment."""
        columns = slice(offset, offset + block.stop - block.start)
        n_rows = self._w_IO.shape[1]
        lattice = _map(lambda part_OK: part_OK[:, columns].expand(n_rows, -1), self._lattice)
        return self._w_IO[block], self._visit.upper_II[block, block], lattice

    def leave(self, block: slice, codes_BO: Tensor, errors_BO: Tensor) -> None:
        """Keep a block's codes, and let the columns after it absorb its errors."""
        self._codes_IO[block] = codes_BO
        upper_BI = self._visit.upper_II[block, block.stop :]
        self._w_IO[block.stop :].addmm_(upper_BI.T, errors_BO, alpha=-1)
        self._loss_O += errors_BO.square().sum(dim=0)

    def solved(self, order: Order) -> Solved:
        """The quantized matrix, columns in storage order.

        Raises `QuantizationError` when its parameters overflowed.
        """
        n_columns, n_rows = self._codes_IO.shape
        codes_OI = self._codes_IO.index_select(0, self._stored_I.argsort()).T.contiguous()
        group_index_I = None
        if order is Order.ACT_ORDER:
            layout_I = self._visit.layout_I
            group_index_I = torch.empty_like(layout_I, dtype=torch.int32)
            group_I = torch.arange(n_columns, dtype=torch.int32, device=layout_I.device)
            group_index_I[layout_I] = group_I // self._grid.span
        params = join_params([self._params[first] for first in sorted(self._params)])
        self._grid.check_params(params)
        tensor = QuantizedTensor(
            grid=self._grid.name,
            shape=(n_rows, n_columns),
            codes_OI=codes_OI,
            params=params,
            group_index_I=group_index_I,
        )
        return Solved(tensor=tensor, loss_O=self._loss_O)


def _visit_columns(matrices: Sequence[_Matrix], widths: Sequence[int], grid: Grid) -> None:
    """Round all columns, segment after segment of these widths."""
    start = 0
    for which, width in enumerate(widths):
        for matrix in matrices:
            matrix.fit(which, start)
        for offset in range(0, width, BLOCK_COLUMNS):
            block = slice(start + offset, start + min(offset + BLOCK_COLUMNS, width))
            entered = [matrix.enter(block, offset) for matrix in matrices]
            w_BEO = torch.stack([w_BO for w_BO, _, _ in entered], dim=1)
            upper_BBE = torch.stack([upper_BB for _, upper_BB, _ in entered], dim=2)
            lattice = _side_by_side([lattice for _, _, lattice in entered])
            if grid.steps is not None and w_BEO.device.type == "cpu":
                codes_BEO, errors_BEO = round_block(w_BEO, upper_BBE, lattice, grid.steps)
            else:
                codes_BEO, errors_BEO = _visit_block(w_BEO, upper_BBE, lattice, grid)
            for which_matrix, matrix in enumerate(matrices):
                errors_BO = errors_BEO[:, which_matrix].contiguous()
                matrix.leave(block, codes_BEO[:, which_matrix], errors_BO)
        start += width


def _visit_block(
    w_BEO: Tensor, upper_BBE: Tensor, lattice: Lattice, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Round the columns of a block in turn; their codes and errors e. Overwrites the weights."""
    codes_BEO = torch.empty_like(w_BEO, dtype=torch.uint8)
    errors_BEO = torch.empty_like(w_BEO)
    for j in range(len(w_BEO)):
        column = _one_column(lattice, j)
        w_EO = w_BEO[j]
        codes_N1 = grid.round(w_EO.view(-1, 1), column)
        codes_BEO[j] = codes_N1.view_as(w_EO)
        rounded_EO = grid.decode(codes_N1, column).view_as(w_EO)
        torch.sub(w_EO, rounded_EO, out=errors_BEO[j]).div_(upper_BBE[j, j, :, None])
        coupling_RE1 = upper_BBE[j, j + 1 :, :, None]
        w_BEO[j + 1 :].addcmul_(coupling_RE1, errors_BEO[j], value=-1)
    return codes_BEO, errors_BEO


def _one_column(lattice: Lattice, j: int) -> Lattice:
    """Views of column j: `Lattice.columns` would copy."""
    return _map(lambda part_NB: part_NB[:, j : j + 1], lattice)


def _side_by_side(lattices: Sequence[Lattice]) -> Lattice:
    """One lattice of the rows of all, each column contiguous in memory."""

    def join(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part_OB.T for part_OB in parts if part_OB is not None]
        return torch.cat(present, dim=1).T if present else None

    if len(lattices) == 1:
        return lattices[0]
    return Lattice(
        scale_OK=torch.cat([lattice.scale_OK.T for lattice in lattices], dim=1).T,
        zero_OK=join([lattice.zero_OK for lattice in lattices]),
        offset_OK=join([lattice.offset_OK for lattice in lattices]),
    )


def _map(change: Callable[[Tensor], Tensor], lattice: Lattice) -> Lattice:
    """The lattice with each of its parts changed."""
    zero_OK, offset_OK = lattice.zero_OK, lattice.offset_OK
    return Lattice(
        scale_OK=change(lattice.scale_OK),
        zero_OK=None if zero_OK is None else change(zero_OK),
        offset_OK=None if offset_OK is None else change(offset_OK),
    )
