"""GPTQ on any grid: round column after column, let the later columns absorb each error.

With U the upper Cholesky factor of the inverse damped Hessian (`cholesky`), for each column j in
the order of the visit:

    e = (w_j - round(w_j)) / U_jj,    w_k -= e U_jk  for every later k

after which sum(e**2) is tr((Q - W) H (Q - W)^T) of the damped H. Source: Frantar et al. 2022,
"GPTQ", algorithm 1. A span's parameters are fitted as its first column is reached, on weights
that hold every correction so far, those of the current lazy block included; spans start on block
borders, where nothing is pending.

Choices of ours:
- The fit weighs column j by H_jj. 1 / U_jj**2, the curvature that is left once later columns absorb
  its error, gains at most 1 % on integer groups and loses up to 2 % on ggml grids.
- Columns that calibration never excited get weight 0 (as in the paper's code) but do not enter the
  mean diagonal that the damping is a fraction of.
- The working matrix is transposed, (I, O), so that a column is contiguous, and corrections leave a
  block of 32 columns by one GEMM.

Shape legend: O output rows, I input columns, K columns of a segment, B columns of a block.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.cholesky import factor_inverse
from tightfit.quant.algorithms.ordering import Order, Segment, descending, segments
from tightfit.quant.grid import Grid, Lattice, check_finite, join_params
from tightfit.quant.grids.integer import PER_CHANNEL, IntegerGrid
from tightfit.quant.tensor import Params, QuantizedTensor

BLOCK_COLUMNS = 32
"""Columns between lazy updates; divides every span."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqSettings:
    """How GPTQ runs."""

    order: Order = Order.STATIC
    """Order in which columns are visited; `static` has the least layer error of those that need no
    `g_idx`."""
    damp_fraction: float = 0.01
    """Fraction of the mean diagonal of H added to the diagonal; grown tenfold while Cholesky
    fails."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GptqResult:
    """A quantized matrix and how it came about."""

    tensor: QuantizedTensor
    damp_fraction: float
    """Damping that was needed; above the setting when Cholesky failed with it."""
    n_dead_columns: int
    """Columns without any activation, whose weights became 0."""
    loss: float
    """tr((Q - W) H (Q - W)^T) with the damped H, W without its dead columns."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Visit:
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


def gptq(
    w_OI: Tensor, hessian_II: Tensor, grid: Grid, settings: GptqSettings | None = None
) -> GptqResult:
    """Quantize float32 (O, I) weights under the float32 Hessian of their input.

    Rows do not influence each other unless the grid has `rows_share_params`, so the rows of several
    linears on one input may be stacked (`solve_shared` does).
    Raises `QuantizationError` for a shape that the grid cannot hold, for NaN or infinity, for
    act-order on a grid without integer groups, and for a Hessian that is zero or not positive
    definite.
    """
    solved = solve_shared({"": w_OI}, hessian_II, {"": grid}, settings)
    return solved[""]


def solve_shared(
    weights: Mapping[str, Tensor],
    hessian_II: Tensor,
    grids: Mapping[str, Grid],
    settings: GptqSettings | None = None,
) -> dict[str, GptqResult]:
    """Quantize the linears that read one input, each (O, I) on its own grid.

    The Hessian is factored once per span; linears on equal grids are solved as stacked rows, except
    on grids with `rows_share_params`. Raises like `gptq`.
    """
    settings = settings or GptqSettings()
    for name, w_OI in weights.items():
        _check(w_OI, hessian_II, grids[name], settings.order)
    visits: dict[int, _Visit] = {}
    results: dict[str, GptqResult] = {}
    for names in _stacks(weights, grids):
        grid = grids[names[0]]
        if grid.span not in visits:
            visits[grid.span] = _plan_visit(hessian_II, grid.span, settings)
        stacked_OI = torch.cat([weights[name] for name in names])
        tensor, loss_O = _solve(stacked_OI, visits[grid.span], grid, settings.order)
        start = 0
        for name in names:
            rows = slice(start, start + weights[name].shape[0])
            results[name] = GptqResult(
                tensor=tensor if len(names) == 1 else _rows(tensor, rows),
                damp_fraction=visits[grid.span].damp_fraction,
                n_dead_columns=int(visits[grid.span].dead_I.sum()),
                loss=loss_O[rows].sum().item(),
            )
            start = rows.stop
    return {name: results[name] for name in weights}


def _stacks(weights: Iterable[str], grids: Mapping[str, Grid]) -> list[list[str]]:
    """Names to be solved together."""
    stacks: dict[str, list[str]] = {}
    for name in weights:
        grid = grids[name]
        key = f"{grid.name} {name}" if grid.rows_share_params else grid.name
        stacks.setdefault(key, []).append(name)
    return list(stacks.values())


def _check(w_OI: Tensor, hessian_II: Tensor, grid: Grid, order: Order) -> None:
    n_rows, n_columns = w_OI.shape
    assert hessian_II.shape == (n_columns, n_columns), (w_OI.shape, hessian_II.shape)
    grid.check_shape((n_rows, n_columns))
    check_finite(w_OI)
    if order is Order.ACT_ORDER and not (
        isinstance(grid, IntegerGrid) and grid.group_size != PER_CHANNEL
    ):
        raise QuantizationError(
            f"{grid.name} cannot store columns regrouped by act-order",
            allowed="act-order on integer grids with groups (int*-g*)",
            hint="use the order `group-aware` or `static`, which any grid can store",
        )


def _plan_visit(hessian_II: Tensor, span: int, settings: GptqSettings) -> _Visit:
    diagonal_I = hessian_II.diagonal()
    layout_I = torch.arange(len(diagonal_I), device=diagonal_I.device)
    if settings.order is Order.ACT_ORDER:
        layout_I = descending(diagonal_I)
        diagonal_I = diagonal_I[layout_I]
    dead_I = diagonal_I == 0
    if dead_I.all():
        raise QuantizationError(
            "the Hessian is zero: no calibration activation reached this linear",
            allowed="a Hessian with at least one positive diagonal entry",
            hint="use more calibration text, or quantize this linear round-to-nearest",
        )
    parts = segments(settings.order, diagonal_I, span)
    visit_I = torch.cat([part.columns_S for part in parts])
    stored_I = layout_I[visit_I]
    visited_II = hessian_II[stored_I][:, stored_I]
    # A dead column is coupled to no other, so any positive number will do; the mean is neutral to
    # the damping.
    visited_II.diagonal()[dead_I[visit_I]] = diagonal_I[~dead_I].mean()
    factor = factor_inverse(visited_II, settings.damp_fraction)
    return _Visit(
        layout_I=layout_I,
        parts=parts,
        upper_II=factor.upper_II,
        importance_I=diagonal_I,
        dead_I=dead_I,
        damp_fraction=factor.damp_fraction,
    )


def _solve(w_OI: Tensor, visit: _Visit, grid: Grid, order: Order) -> tuple[QuantizedTensor, Tensor]:
    """The quantized rows and the loss of each."""
    n_rows, n_columns = w_OI.shape
    visit_I = torch.cat([part.columns_S for part in visit.parts])
    stored_I = visit.layout_I[visit_I]
    w_IO = w_OI.float().T[stored_I].masked_fill(visit.dead_I[visit_I, None], 0)
    codes_IO = w_IO.new_empty(n_columns, n_rows, dtype=torch.uint8)
    loss_O = w_IO.new_zeros(n_rows)
    fitted: dict[int, Params] = {}
    start = 0
    for part in visit.parts:
        width = len(part.visit_S)
        w_KO = w_IO.new_empty(width, n_rows)
        w_KO[part.visit_S] = w_IO[start : start + width]
        params = grid.fit(
            w_KO.T.contiguous(), visit.importance_I[None, part.start : part.start + width]
        )
        fitted[part.start] = params
        lattice = _column_major(grid.lattice(params, n_rows, width).columns(part.visit_S))
        for offset in range(0, width, BLOCK_COLUMNS):
            stop = start + min(offset + BLOCK_COLUMNS, width)
            block = slice(start + offset, stop)
            errors_BO = _visit_block(
                w_IO[block],
                visit.upper_II[block, block],
                grid,
                lattice,
                offset,
                codes_IO[block],
            )
            w_IO[stop:].addmm_(visit.upper_II[block, stop:].T, errors_BO, alpha=-1)
            loss_O += errors_BO.square_().sum(dim=0)
        start += width
    codes_OI = codes_IO.new_empty(n_rows, n_columns)
    codes_OI[:, stored_I] = codes_IO.T
    group_index_I = None
    if order is Order.ACT_ORDER:
        group_index_I = torch.empty_like(visit.layout_I, dtype=torch.int32)
        group_I = torch.arange(n_columns, dtype=torch.int32, device=w_OI.device) // grid.span
        group_index_I[visit.layout_I] = group_I
    tensor = QuantizedTensor(
        grid=grid.name,
        shape=(n_rows, n_columns),
        codes_OI=codes_OI,
        params=join_params([fitted[first] for first in sorted(fitted)]),
        group_index_I=group_index_I,
    )
    return tensor, loss_O


def _visit_block(
    w_BO: Tensor, upper_BB: Tensor, grid: Grid, lattice: Lattice, offset: int, codes_BO: Tensor
) -> Tensor:
    """Round the columns of a block in turn, in place; returns their errors e (B, O).

    The block's columns start at `offset` of the lattice.
    """
    errors_BO = torch.empty_like(w_BO)
    pivots = upper_BB.diagonal().tolist()
    for j, pivot in enumerate(pivots):
        column = _one_column(lattice, offset + j)
        codes_O1 = grid.round(w_BO[j][:, None], column)
        codes_BO[j] = codes_O1[:, 0]
        rounded_O = grid.decode(codes_O1, column)[:, 0]
        torch.sub(w_BO[j], rounded_O, out=errors_BO[j]).div_(pivot)
        w_BO[j + 1 :].addr_(upper_BB[j, j + 1 :], errors_BO[j], alpha=-1)
    return errors_BO


def _column_major(lattice: Lattice) -> Lattice:
    """The same lattice with each column contiguous in memory."""

    def transpose(part_OK: Tensor | None) -> Tensor | None:
        return None if part_OK is None else part_OK.T.contiguous().T

    return Lattice(
        scale_OK=lattice.scale_OK.T.contiguous().T,
        zero_OK=transpose(lattice.zero_OK),
        offset_OK=transpose(lattice.offset_OK),
    )


def _one_column(lattice: Lattice, j: int) -> Lattice:
    """Views of column j: `Lattice.columns` would copy."""
    zero_OK, offset_OK = lattice.zero_OK, lattice.offset_OK
    return Lattice(
        scale_OK=lattice.scale_OK[:, j : j + 1],
        zero_OK=None if zero_OK is None else zero_OK[:, j : j + 1],
        offset_OK=None if offset_OK is None else offset_OK[:, j : j + 1],
    )


def _rows(tensor: QuantizedTensor, rows: slice) -> QuantizedTensor:
    """Some rows of a tensor whose parameters belong to single rows."""
    return QuantizedTensor(
        grid=tensor.grid,
        shape=(rows.stop - rows.start, tensor.shape[1]),
        codes_OI=tensor.codes_OI[rows].clone(),
        params={name: part[rows].clone() for name, part in tensor.params.items()},
        group_index_I=tensor.group_index_I,
    )
