"""What the allocator counts: items with the same options, and how many take each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.targets.allocation.option import Option

Counts = list[list[int]]
"""Items per option, a row for each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemClass:
    """Items with the same options."""

    items: tuple[tuple[str, ...], ...]
    """Names of the tensors of each item: one, or some that share a type."""
    options: tuple[Option, ...]
    """Bytes strictly rise, losses strictly fall."""


def total_bytes(classes: Sequence[ItemClass], counts: Counts) -> int:
    """Exact sum of bytes."""
    return sum(
        count * option.n_bytes
        for each, row in zip(classes, counts, strict=True)
        for option, count in zip(each.options, row, strict=True)
    )


def total_loss(classes: Sequence[ItemClass], counts: Counts) -> float:
    """Sum of losses, rounded once."""
    return math.fsum(
        count * option.loss_nats
        for each, row in zip(classes, counts, strict=True)
        for option, count in zip(each.options, row, strict=True)
    )
