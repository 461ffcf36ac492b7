"""From measured KL to one factor per role.

With r = ln(measured / predicted) of n measurements of a role, its losses are multiplied by

    exp((sum of r + POOLED R) / (n + POOLED))

the posterior mean under normal errors (empirical Bayes): one measurement is one throw of rounding
errors on few tokens, and scatters more than the roles do among themselves. R is the mean of r over
all roles inside blocks, which the coupling between rows that the prediction drops moves together;
for head and embedding, whose predictions hardly need it, R = 0.
"""

import math
from collections.abc import Sequence

from tightfit.targets.allocation.roles import EMBEDDING, HEAD
from tightfit.targets.allocation.sensitivity import MeasuredLoss

POOLED = 2
"""Measurements that R counts for: within a role r scatters by 0.15 to 0.25, and the roles' means by
0.12 to 0.16 (standard deviations; 120 measurements of tiny-r1, 25 of SmolLM2-135M)."""
LARGEST_FACTOR = 4.0
"""Of measured over predicted KL, either way: beyond it one of the two is not of second order."""


def role_corrections(measured: Sequence[tuple[str, MeasuredLoss]]) -> dict[str, float]:
    """Factor on the losses of every role, from measured losses with their roles."""
    logarithms: dict[str, list[float]] = {}
    for role, loss in measured:
        logarithms.setdefault(role, []).append(_logarithm(loss))
    inside = [r for role, values in logarithms.items() if not _is_end(role) for r in values]
    mean = sum(inside) / len(inside) if inside else 0.0
    return {
        role: math.exp(
            (sum(values) + POOLED * (0.0 if _is_end(role) else mean)) / (len(values) + POOLED)
        )
        for role, values in logarithms.items()
    }


def _is_end(role: str) -> bool:
    return role in (EMBEDDING, HEAD)


def _logarithm(loss: MeasuredLoss) -> float:
    """ln(measured / predicted) within the bounds."""
    bound = math.log(LARGEST_FACTOR)
    if loss.predicted_nats <= 0:
        return 0.0
    if loss.measured_nats <= 0:
        return -bound
    return min(bound, max(-bound, math.log(loss.measured_nats / loss.predicted_nats)))
