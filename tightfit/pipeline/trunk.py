"""A mixture block as the quantization of its trunk sees it: without its routed experts.

One input is shared: what gate and up of every routed expert read, shared experts read too. An AWQ
scale of it is judged by shared experts and a few routed ones, and folded for all.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from tightfit.calib.experts import EXPERT_STACKS
from tightfit.calib.family import BlockKind
from tightfit.calib.logical import expert_name, is_stack
from tightfit.pipeline.shared import Shared
from tightfit.quant.grid import Grid
from tightfit.targets.job_needs import JUDGES


def judges_of(shared: Shared, layer: int, grids: Mapping[str, Grid]) -> dict[str, Tensor]:
    """Gate and up of some experts, by path inside the block, where all are quantized."""
    moe = shared.decoder.dimensions.moe
    stacks = [EXPERT_STACKS["gate_proj"], EXPERT_STACKS["up_proj"]]
    if moe is None or not grids.keys() >= set(stacks):
        return {}
    count = min(JUDGES, moe.n_routed_experts)
    numbers = [step * moe.n_routed_experts // count for step in range(count)]
    tensor = shared.checkpoint.architecture.tensor
    names = [expert_name(stack, number) for stack in stacks for number in numbers]
    return {name: shared.float_weight(tensor(layer, name)) for name in names}


def trunk_kind(kind: BlockKind, judges: Mapping[str, Tensor]) -> BlockKind:
    """The kind with its routed experts left out, or as far as they judge a scale.

    Where experts read an input and none judges, no scale may be folded: they would not get it.
    """
    inputs = []
    for source in kind.inputs:
        own = tuple(linear for linear in source.linears if not is_stack(linear))
        if own == source.linears:
            inputs.append(source)
        elif own:
            others = tuple(name.removesuffix(".weight") for name in judges)
            inputs.append(
                replace(
                    source,
                    linears=own + others,
                    fold_kind=source.fold_kind if judges else None,
                )
            )
    return replace(kind, inputs=tuple(inputs))
