"""What each tensor of a model loses on each grid, in predicted KL divergence.

To second order the KL divergence of a model whose weights are off by small errors is a quadratic
form in them, and errors of different tensors are close to uncorrelated: so losses add up over
tensors. A `Sensitivity` is either a guess from shapes alone (`tightfit.targets.allocation.prior`)
or measured on calibration data (`tightfit.pipeline.sensitivity`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit.targets.grids import FLOAT_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredLoss:
    """One tensor put on one grid, everything else as it was."""

    tensor: str
    grid: str
    predicted_nats: float
    """Before the correction of its role."""
    measured_nats: float
    """Mean KL divergence per token, over the whole vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """Predicted mean KL divergence per token, in nats, of one tensor on one grid."""

    losses: Mapping[str, Mapping[str, float]]
    """By tensor and grid name; float types lose nothing and are not listed."""
    corrections: Mapping[str, float]
    """By role (`self_attn.q_proj`, `head`, `embedding`): measured over predicted KL, which
    `losses` hold already; empty for a guess."""
    measured: tuple[MeasuredLoss, ...]
    """What the corrections come from."""
    n_tokens: int
    """Calibration tokens behind the losses; 0 for a guess."""

    def loss_nats(self, storage: Mapping[str, str]) -> float:
        """Predicted KL of a model that stores its tensors so."""
        return sum(
            self.losses[name][stored_as]
            for name, stored_as in storage.items()
            if stored_as not in FLOAT_BYTES
        )
