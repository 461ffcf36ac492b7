"""What the relaxation leaves open, as an integer program for HiGHS.

With the relaxation's price every option has a reduced cost, what one item loses by taking it
instead of its cheapest option:

    reduced[c,o] = loss[c,o] + price bytes[c,o] - min_o' (loss[c,o'] + price bytes[c,o'])

An allocation is above the bound by the sum of its reduced costs and by the price of the bytes that
it leaves. So an option whose reduced cost alone exceeds the gap between the bound and a known
allocation is in no better one, and is left out: that is exact, and most are.

HiGHS works in floating point with absolute tolerances of 1e-6 (feasibility, and the gap at which it
stops). Costs are therefore in units of the gap and bytes in units of what there is to spend beyond
the smallest options left, and an answer that uses a tolerance up is asked for again with less.
"""

from collections.abc import Sequence
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
    import highspy

    bytes_scale = _BYTES_SCALE / max(limit_bytes, 1)
    budget_row = len(core.class_sizes)
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(core.variables), budget_row + 1
    # Bytes left cost their price: minimizing this minimizes the sum of losses.
    program.col_cost_ = [
        _COST_SCALE / core.gap * (variable.reduced_cost - core.price * variable.more_bytes)
        for variable in core.variables
    ]
    program.col_lower_ = [0.0] * program.num_col_
    program.col_upper_ = [
        float(core.class_sizes[variable.class_index]) for variable in core.variables
    ]
    program.integrality_ = [highspy.HighsVarType.kInteger] * program.num_col_
    sizes = [float(size) for size in core.class_sizes]
    program.row_lower_ = [*sizes, -highspy.kHighsInf]
    program.row_upper_ = [*sizes, bytes_scale * limit_bytes]
    # A variable counts in its class and in the budget.
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = [2 * place for place in range(program.num_col_ + 1)]
    program.a_matrix_.index_ = [
        row for variable in core.variables for row in (variable.class_index, budget_row)
    ]
    program.a_matrix_.value_ = [
        value for variable in core.variables for value in (1.0, bytes_scale * variable.more_bytes)
    ]
    # Not `highspy.Highs`: that prints a banner when it is made, before it can be told to be silent.
    solver = highspy._Highs()  # type: ignore[attr-defined]  # missing in its stubs
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_max_nodes", _MAX_NODES)
    solver.passModel(program)
    solver.run()
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    return [round(value) for value in solver.getSolution().col_value]
