"""Which units a quantization has: what is left is what an interrupted job still has to do."""

from tightfit.calib.logical import is_stack
from tightfit.pipeline.job import block_unit, experts_unit
from tightfit.pipeline.shared import Shared
from tightfit.targets.job_needs import EXPERTS_PER_UNIT

EMBEDDING_UNIT = "embedding"
HEAD_UNIT = "head"


def model_units(shared: Shared) -> tuple[str, ...]:
    """All units, in the order of the model."""
    layers = range(shared.checkpoint.dimensions.n_layers)
    blocks = (unit for layer in layers for unit in block_units(shared, layer))
    return (EMBEDDING_UNIT, *blocks, HEAD_UNIT)


def block_units(shared: Shared, layer: int) -> tuple[str, ...]:
    """Units of one block."""
    groups = expert_groups(shared, layer)
    return (block_unit(layer), *(experts_unit(layer, experts.start) for experts in groups))


def expert_groups(shared: Shared, layer: int) -> list[range]:
    """The block's routed experts, in groups of one unit; none where they are not quantized."""
    moe = shared.checkpoint.dimensions.moe
    if moe is None or not has_quantized_experts(shared, layer):
        return []
    end = moe.n_routed_experts
    return [
        range(first, min(first + EXPERTS_PER_UNIT, end))
        for first in range(0, end, EXPERTS_PER_UNIT)
    ]


def has_quantized_experts(shared: Shared, layer: int) -> bool:
    """Whether the block's routed experts are put on a grid."""
    return any(is_stack(name) for name in shared.block_grids(layer))


def is_mixture(shared: Shared, layer: int) -> bool:
    """Whether the block has routed experts."""
    checkpoint = shared.checkpoint
    kind = checkpoint.architecture.block_kind(layer, checkpoint.dimensions)
    return any(is_stack(linear) for linear in kind.linears)
