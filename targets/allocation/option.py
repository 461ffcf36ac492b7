"""What the allocator chooses from, and what it chose."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to store one tensor."""

    stored_as: str
    """Grid or float type."""
    n_bytes: int
    """Of the budget."""
    loss_nats: float
    """Predicted mean KL divergence per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """The storage that loses least within the budget."""

    storage: Mapping[str, str]
    """Of every tensor that had options, by name."""
    n_bytes: int
    budget_bytes: int
    predicted_nats: float
    """Sum of the losses."""
