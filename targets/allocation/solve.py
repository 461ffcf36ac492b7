"""The integer program: one option for every tensor, so that the sum of losses is least.

    minimize    sum_c sum_o  loss[c,o]  x[c,o]
    subject to  sum_c sum_o  bytes[c,o] x[c,o]  <=  budget
                sum_o x[c,o] = tensors of the class c,   x integers >= 0

a multiple-choice knapsack. Tensors whose options have the same bytes and losses (80 equal layers
under a prior) are one class with counts, for among equal tensors a solver would try every order.
Tensors that must share a type are one item whose bytes and losses are the sums. Options that cost
no less than another one and lose no less are dropped first.

The relaxation and what follows from it (`tightfit.targets.allocation.relaxation`) leave a small
program in figures of one size, which HiGHS solves; sums are checked in integers.

Among equal tensors the outer ones, first and last in turn, get the most bits: llama.cpp's mixes
spend their extra bits on the ends of a model, too (`use_more_bits` in llama-quant.cpp).
"""

from collections.abc import Mapping, Sequence

from tightfit.errors import UsageError
from tightfit.targets.allocation.integer_program import solve_core
from tightfit.targets.allocation.item_class import Counts, ItemClass, total_bytes, total_loss
from tightfit.targets.allocation.option import Allocation, Option
from tightfit.targets.allocation.relaxation import relax, spend_rest


def allocate(
    options: Mapping[str, Sequence[Option]],
    budget_bytes: int,
    *,
    shared: Sequence[Sequence[str]] = (),
) -> Allocation:
    """The options with the least sum of losses whose bytes are at most `budget_bytes`.

    `options` are the ways to store each tensor by name, in the model's order; the tensors of a
    `shared` group get the same `stored_as`. Raises `UsageError` when even the smallest options are
    too large, or when a group has none in common.
    """
    classes = _classes(_items(options, shared))
    least_bytes = sum(len(each.items) * each.options[0].n_bytes for each in classes)
    if least_bytes > budget_bytes:
        raise UsageError(
            f"{budget_bytes:,} bytes are less than the smallest grids take",
            allowed=f"{least_bytes:,} bytes or more",
            hint="allow more bytes, or choose a smaller model: see `tightfit models`",
        )
    counts = _best_counts(classes, budget_bytes)
    n_bytes = total_bytes(classes, counts)
    assert n_bytes <= budget_bytes, "an allocation exceeds its budget"
    storage: dict[str, str] = {}
    for each, row in zip(classes, counts, strict=True):
        storage |= _assign(each, row)
    return Allocation(
        storage={name: storage[name] for name in options},
        n_bytes=n_bytes,
        budget_bytes=budget_bytes,
        predicted_nats=total_loss(classes, counts),
    )


def _items(
    options: Mapping[str, Sequence[Option]], shared: Sequence[Sequence[str]]
) -> dict[tuple[str, ...], tuple[Option, ...]]:
    """Undominated options by the names of the tensors that take them together."""
    item_of: dict[str, tuple[str, ...]] = {name: (name,) for name in options}
    for group in shared:
        united = {other for name in group for other in item_of[name]}
        joined = tuple(name for name in options if name in united)
        item_of |= dict.fromkeys(joined, joined)
    return {
        names: _undominated(options[names[0]] if len(names) == 1 else _common(options, names))
        for names in dict.fromkeys(item_of.values())
    }


def _common(options: Mapping[str, Sequence[Option]], names: Sequence[str]) -> list[Option]:
    """Options of several tensors together: those that all of them have."""
    by_type = [{option.stored_as: option for option in options[name]} for name in names]
    common = [
        Option(
            stored_as=stored_as,
            n_bytes=sum(each[stored_as].n_bytes for each in by_type),
            loss_nats=sum(each[stored_as].loss_nats for each in by_type),
        )
        for stored_as in by_type[0]
        if all(stored_as in each for each in by_type)
    ]
    if not common:
        raise UsageError(
            f"no type can hold all of {', '.join(names)}, which must share one",
            allowed="; ".join(
                f"{name}: {', '.join(each)}" for name, each in zip(names, by_type, strict=True)
            ),
            hint="choose a format or a target that has a type for all of them",
        )
    return common


def _undominated(options: Sequence[Option]) -> tuple[Option, ...]:
    """Smallest first, each one better than all smaller ones."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.n_bytes, option.loss_nats)):
        if not kept or option.loss_nats < kept[-1].loss_nats:
            kept.append(option)
    assert kept, "a tensor without options"
    return tuple(kept)


def _classes(items: Mapping[tuple[str, ...], tuple[Option, ...]]) -> list[ItemClass]:
    members: dict[tuple[Option, ...], list[tuple[str, ...]]] = {}
    for names, options in items.items():
        members.setdefault(options, []).append(names)
    return [ItemClass(items=tuple(found), options=options) for options, found in members.items()]


def _best_counts(classes: Sequence[ItemClass], budget_bytes: int) -> Counts:
    relaxed = relax(classes, budget_bytes)
    found = solve_core(classes, budget_bytes, relaxed)
    if found is None:
        return relaxed.counts
    # HiGHS's tolerances may leave bytes that one more step fits in.
    found = spend_rest(classes, found, budget_bytes)
    return min(found, relaxed.counts, key=lambda counts: total_loss(classes, counts))


def _assign(each: ItemClass, counts: Sequence[int]) -> dict[str, str]:
    """What every tensor of a class is stored as: the most bits at both ends."""
    last = len(each.items) - 1
    from_outside = sorted(range(len(each.items)), key=lambda index: min(index, last - index))
    types = [
        option.stored_as
        for option, count in reversed(list(zip(each.options, counts, strict=True)))
        for _ in range(count)
    ]
    assert len(types) == len(each.items), "an allocation leaves a tensor out"
    return {
        name: stored_as
        for index, stored_as in zip(from_outside, types, strict=True)
        for name in each.items[index]
    }
