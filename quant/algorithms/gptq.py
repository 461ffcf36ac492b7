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

The loop itself, over many matrices at once, is in `column_loop`.

Shape legend: E matrices (experts), O output rows, I input columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.column_loop import Solved, Visit, plan_visit, solve_columns
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.grid import Grid, check_finite
from tightfit.quant.grids.integer import PER_CHANNEL, IntegerGrid
from tightfit.quant.tensor import QuantizedTensor

CPU_ROWS = 4096
"""Rows solved side by side. One thread, against one by one: 16 experts of 256 x 512 take half the
time (8 at once: all of the gain), 8 of 512 x 1024 three quarters, 8 of 2048 x 2048 the same within
5 % at 2 at once and 5 to 20 % less at 8, which is not worth holding so many factors."""
GPU_ROWS = 1 << 16
"""The same on an accelerator, where launches cost more than memory (estimated, not measured)."""


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


def solve_batch(
    weights_EOI: Sequence[Tensor] | Tensor,
    hessians_EII: Sequence[Tensor] | Tensor,
    grid: Grid,
    settings: GptqSettings | None = None,
) -> list[GptqResult]:
    """Quantize E matrices (O, I) of one shape, each under its own Hessian, in one column loop.

    Each gets the bits that `gptq` gives it, with an order and a damping of its own. Raises like
    `gptq`.
    """
    batch = [{"": w_OI} for w_OI in weights_EOI]
    return [solved[""] for solved in solve_shared_batch(batch, hessians_EII, {"": grid}, settings)]


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
    return solve_shared_batch([weights], [hessian_II], grids, settings)[0]


def solve_shared_batch(
    batch: Sequence[Mapping[str, Tensor]],
    hessians_EII: Sequence[Tensor] | Tensor,
    grids: Mapping[str, Grid],
    settings: GptqSettings | None = None,
) -> list[dict[str, GptqResult]]:
    """`solve_shared` for E inputs at once, each with linears of the same names and shapes.

    For experts: gate and up of each on the Hessian of its tokens. Raises like `gptq`.
    """
    settings = settings or GptqSettings()
    for weights, hessian_II in zip(batch, hessians_EII, strict=True):
        for name, w_OI in weights.items():
            assert w_OI.shape == batch[0][name].shape, (name, w_OI.shape)
            _check(w_OI, hessian_II, grids[name], settings.order)
    rows = sum(len(w_OI) for w_OI in batch[0].values())
    at_a_time = max(1, _rows_side_by_side(hessians_EII[0].device) // max(1, rows))
    results = []
    for start in range(0, len(batch), at_a_time):
        some = slice(start, start + at_a_time)
        results += _solve_together(batch[some], hessians_EII[some], grids, settings)
    return results


def _rows_side_by_side(device: torch.device) -> int:
    return CPU_ROWS if device.type == "cpu" else GPU_ROWS


def _solve_together(
    batch: Sequence[Mapping[str, Tensor]],
    hessians_EII: Sequence[Tensor] | Tensor,
    grids: Mapping[str, Grid],
    settings: GptqSettings,
) -> list[dict[str, GptqResult]]:
    visits: dict[int, list[Visit]] = {}
    results: list[dict[str, GptqResult]] = [{} for _ in batch]
    for names in _stacks(batch[0], grids):
        grid = grids[names[0]]
        if grid.span not in visits:
            visits[grid.span] = [
                plan_visit(hessian_II, grid.span, settings.order, settings.damp_fraction)
                for hessian_II in hessians_EII
            ]
        along = visits[grid.span]
        stacked = [torch.cat([weights[name] for name in names]) for weights in batch]
        n_rows = {name: len(batch[0][name]) for name in names}
        for which, solved in enumerate(solve_columns(stacked, along, grid, settings.order)):
            results[which] |= _split(solved, n_rows, along[which])
    return [{name: found[name] for name in batch[0]} for found in results]


def _split(solved: Solved, n_rows: Mapping[str, int], visit: Visit) -> dict[str, GptqResult]:
    """The results of stacked linears."""
    results = {}
    start = 0
    for name in n_rows:
        rows = slice(start, start + n_rows[name])
        results[name] = GptqResult(
            tensor=solved.tensor if len(n_rows) == 1 else _rows(solved.tensor, rows),
            damp_fraction=visit.damp_fraction,
            n_dead_columns=int(visit.dead_I.sum()),
            loss=solved.loss_O[rows].sum().item(),
        )
        start = rows.stop
    return results


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


def _rows(tensor: QuantizedTensor, rows: slice) -> QuantizedTensor:
    """Some rows of a tensor whose parameters belong to single rows."""
    return QuantizedTensor(
        grid=tensor.grid,
        shape=(rows.stop - rows.start, tensor.shape[1]),
        codes_OI=tensor.codes_OI[rows].clone(),
        params={name: part[rows].clone() for name, part in tensor.params.items()},
        group_index_I=tensor.group_index_I,
    )
