"""The knapsack with parts of tensors allowed: a bound, a price per byte, and a good start.

Only options on the lower convex hull of (bytes, loss) matter then, and the best way to spend bytes
is to take the hull's steps in order of loss saved per byte until the budget ends inside a step
(Sinha and Zoltners, The multiple-choice knapsack problem, Operations Research 27, 1979). That
step's rate is the price of a byte, and with it

    bound  =  sum_c n[c] min_o (loss[c,o] + price bytes[c,o])  -  price budget

is below every allocation. Without the part of the last step it is an allocation already; single
steps that still fit make it better.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.targets.allocation.item_class import Counts, ItemClass, total_bytes
from tightfit.targets.allocation.option import Option


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxation:
    """What the relaxed problem tells of the real one."""

    price: float
    """Loss saved by the last byte, in nats; 0 where the budget holds the best of everything."""
    counts: Counts
    """An allocation within the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """From one option of the hull to the next."""

    rate: float
    """Loss saved per byte."""
    class_index: int
    start: int
    end: int
    n_bytes: int


def relax(classes: Sequence[ItemClass], budget_bytes: int) -> Relaxation:
    """Price and first allocation for a budget that holds the smallest options."""
    counts = [[len(each.items)] + [0] * (len(each.options) - 1) for each in classes]
    rest_bytes = budget_bytes - total_bytes(classes, counts)
    price = 0.0
    for step in sorted(_all_steps(classes), key=lambda step: -step.rate):
        row = counts[step.class_index]
        n_items = min(row[step.start], rest_bytes // step.n_bytes)
        if n_items < row[step.start] and not price:
            price = step.rate
        row[step.start] -= n_items
        row[step.end] += n_items
        rest_bytes -= n_items * step.n_bytes
    return Relaxation(price=price, counts=spend_rest(classes, counts, budget_bytes))


def spend_rest(classes: Sequence[ItemClass], counts: Counts, budget_bytes: int) -> Counts:
    """The counts with single items raised while that fits, best rate first."""
    raised = [list(row) for row in counts]
    rest_bytes = budget_bytes - total_bytes(classes, raised)
    while True:
        steps = [
            _step(each, index, start, end)
            for index, each in enumerate(classes)
            for start in range(len(each.options))
            if raised[index][start]
            for end in range(start + 1, len(each.options))
            if each.options[end].n_bytes - each.options[start].n_bytes <= rest_bytes
        ]
        if not steps:
            return raised
        best = max(steps, key=lambda step: step.rate)
        raised[best.class_index][best.start] -= 1
        raised[best.class_index][best.end] += 1
        rest_bytes -= best.n_bytes


def _all_steps(classes: Sequence[ItemClass]) -> list[_Step]:
    steps: list[_Step] = []
    for index, each in enumerate(classes):
        hull = _hull(each.options)
        steps += [_step(each, index, start, end) for start, end in itertools.pairwise(hull)]
    return steps


def _hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull, smallest first."""
    hull: list[int] = []
    for index in range(len(options)):
        while len(hull) > 1 and _rate(options, hull[-2], hull[-1]) <= _rate(
            options, hull[-1], index
        ):
            hull.pop()
        hull.append(index)
    return hull


def _step(each: ItemClass, class_index: int, start: int, end: int) -> _Step:
    return _Step(
        rate=_rate(each.options, start, end),
        class_index=class_index,
        start=start,
        end=end,
        n_bytes=each.options[end].n_bytes - each.options[start].n_bytes,
    )


def _rate(options: Sequence[Option], start: int, end: int) -> float:
    low, high = options[start], options[end]
    return (low.loss_nats - high.loss_nats) / (high.n_bytes - low.n_bytes)
