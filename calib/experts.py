"""Routed experts one at a time, outside the module classes of `transformers`.

Those keep the experts of a layer in two tensors, 45 GB of float32 for a layer of R1. Here a mixture
block is built without them: where they belong stands `RoutedTokens`, which gives nothing and notes
what it was asked for. Each expert is then applied to its own tokens.

Shape legend: T tokens, K experts that a token visits, I hidden width, O expert's width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tightfit.calib.family import Architecture
from tightfit.calib.logical import expert_name

EXPERT_STACKS = {
    name: f"mlp.experts.*.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
}
"""Logical path inside a block of each matrix of its routed experts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routing:
    """What a block's router decided."""

    x_TI: Tensor
    """float32: the tokens as the experts read them."""
    experts_TK: Tensor
    """int64: numbers of the experts."""
    weights_TK: Tensor
    """float32: weight of each one's output, the routed scale included."""


class RoutedTokens(nn.Module):
    """In the place of a block's routed experts."""

    routing: Routing | None = None

    def forward(self, x_TI: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Zeros; notes where the tokens go."""
        self.routing = Routing(x_TI=x_TI, experts_TK=experts_TK, weights_TK=weights_TK)
        return torch.zeros_like(x_TI)


def routing_of(block: nn.Module) -> Routing | None:
    """What the block's last call routed; None for a dense block."""
    return next((m.routing for m in block.modules() if isinstance(m, RoutedTokens)), None)


def expert_names(architecture: Architecture, layer: int, number: int) -> tuple[str, str, str]:
    """Stored names of an expert's gate, up and down matrices."""
    stacks = EXPERT_STACKS.values()
    gate, up, down = (expert_name(architecture.tensor(layer, stack), number) for stack in stacks)
    return gate, up, down


def run_expert(gate_OI: Tensor, up_OI: Tensor, down_IO: Tensor, x_TI: Tensor) -> Tensor:
    """float32 (T, I): down(silu(gate x) * up x)."""
    return gate_up(gate_OI, up_OI, x_TI) @ down_IO.T


def gate_up(gate_OI: Tensor, up_OI: Tensor, x_TI: Tensor) -> Tensor:
    """float32 (T, O): silu(gate x) * up x, which down reads."""
    return nn.functional.silu(x_TI @ gate_OI.T) * (x_TI @ up_OI.T)
