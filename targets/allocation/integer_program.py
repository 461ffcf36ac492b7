"""What the relaxation leaves open, as an integer program for SciPy's `milp` (HiGHS).

With the relaxation's price every option has a reduced cost, what one item loses by taking it
instead of its cheapest option:

    reduced[c,o] = loss[c,o] + price bytes[c,o] - min_o' (loss[c,o'] + price bytes[c,o'])

An allocation is above the bound by the sum of its reduced costs and by the price of the bytes that
it leaves. So an option whose reduced cost alone exceeds the gap between the bound and a known
allocation is in no better one, and is left out: that is exact, and most are.

HiGHS works in floating point with absolute tolerances of 1e-6 (feasibility, and the gap at which it
stops). Costs are therefore in units of the gap and bytes in units of what there is to spend beyond
the smallest options left, and an answer that uses a tolerance up is asked for again with less.

HiGHS 1.12 prints a debugging line now and then, even when told to be silent (HiGHS.jl #312): it is
dropped, for standard output is for data.

Shape legend: V variables, C classes.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tightfit.targets.allocation.item_class import Counts, ItemClass, total_bytes, total_loss
from tightfit.targets.allocation.relaxation import Relaxation

_GOOD_ENOUGH = 1e-6
"""Of the sum of losses: no prediction of it is worth more."""
_COST_SCALE = 1e4
"""Of the gap: HiGHS's absolute gap of 1e-6 is 1e-10 of it."""
_BYTES_SCALE = 1e4
"""Of the bytes to spend: 1e-6 of feasibility are 1e-10 of them."""
_MAX_NODES = 2000
"""Of the search tree, where the best answer so far is taken. It ends long searches at the same
place on every machine, as a limit in seconds would not."""
_STDOUT = 1
"""File descriptor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variable:
    """How many items of a class take one of its options."""

    class_index: int
    option_index: int
    reduced_cost: float
    more_bytes: int
    """Than the smallest option of the class that is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Core:
    """The program."""

    variables: tuple[_Variable, ...]
    class_sizes: tuple[int, ...]
    spare_bytes: int
    """Beyond the smallest options left."""
    price: float
    gap: float


def solve_core(
    classes: Sequence[ItemClass], budget_bytes: int, relaxed: Relaxation
) -> Counts | None:
    """An allocation within the budget, as good as can be; None: the relaxation's is."""
    costs = [
        [option.loss_nats + relaxed.price * option.n_bytes for option in each.options]
        for each in classes
    ]
    reduced = [[cost - min(row) for cost in row] for row in costs]
    gap = relaxed.price * (budget_bytes - total_bytes(classes, relaxed.counts)) + sum(
        count * cost
        for row, counts in zip(reduced, relaxed.counts, strict=True)
        for cost, count in zip(row, counts, strict=True)
    )
    if gap <= _GOOD_ENOUGH * total_loss(classes, relaxed.counts):
        return None
    kept = [[place for place, cost in enumerate(row) if cost <= gap] for row in reduced]
    smallest = [each.options[row[0]].n_bytes for each, row in zip(classes, kept, strict=True)]
    core = _Core(
        variables=tuple(
            _Variable(
                class_index=index,
                option_index=place,
                reduced_cost=reduced[index][place],
                more_bytes=classes[index].options[place].n_bytes - smallest[index],
            )
            for index, row in enumerate(kept)
            for place in row
        ),
        class_sizes=tuple(len(each.items) for each in classes),
        spare_bytes=budget_bytes
        - sum(len(each.items) * n_bytes for each, n_bytes in zip(classes, smallest, strict=True)),
        price=relaxed.price,
        gap=gap,
    )
    return _within_budget(classes, core)


def _within_budget(classes: Sequence[ItemClass], core: _Core) -> Counts | None:
    """Exact in bytes, whatever HiGHS takes for equal; None: it found nothing."""
    limit_bytes = core.spare_bytes
    while limit_bytes >= 0:
        taken = _milp(core, limit_bytes)
        if taken is None:
            return None
        over_bytes = (
            sum(
                n_items * variable.more_bytes
                for variable, n_items in zip(core.variables, taken, strict=True)
            )
            - core.spare_bytes
        )
        if over_bytes <= 0:
            counts = [[0] * len(each.options) for each in classes]
            for variable, n_items in zip(core.variables, taken, strict=True):
                counts[variable.class_index][variable.option_index] = n_items
            return counts
        limit_bytes -= over_bytes
    return None


def _milp(core: _Core, limit_bytes: int) -> list[int] | None:
    """Items per variable, true up to HiGHS's tolerances; None: none before its search ended."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    n_variables = len(core.variables)
    class_V = np.array([variable.class_index for variable in core.variables])
    reduced_cost_V = np.array([variable.reduced_cost for variable in core.variables])
    more_bytes_V = np.array([variable.more_bytes for variable in core.variables], dtype=float)
    class_sizes_C = np.array(core.class_sizes, dtype=float)
    member_CV = csr_array((np.ones(n_variables), (class_V, np.arange(n_variables))))
    bytes_scale = _BYTES_SCALE / max(limit_bytes, 1)
    with _silent_stdout():
        result = milp(
            # Bytes left cost their price: minimizing this minimizes the sum of losses.
            c=_COST_SCALE / core.gap * (reduced_cost_V - core.price * more_bytes_V),
            integrality=np.ones(n_variables),
            bounds=Bounds(0, class_sizes_C[class_V]),
            constraints=(
                LinearConstraint(member_CV, class_sizes_C, class_sizes_C),
                LinearConstraint(
                    csr_array(bytes_scale * more_bytes_V[None, :]),
                    -np.inf,
                    bytes_scale * limit_bytes,
                ),
            ),
            options={"mip_rel_gap": 0.0, "node_limit": _MAX_NODES},
        )
    return None if result.x is None else [round(float(value)) for value in result.x]


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """What C code prints meanwhile is dropped."""
    c_library = ctypes.CDLL(None)
    c_library.fflush(None)
    stdout = os.dup(_STDOUT)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    try:
        yield
    finally:
        c_library.fflush(None)  # C's buffer still holds it
        os.dup2(stdout, _STDOUT)
        os.close(stdout)
        os.close(nowhere)
