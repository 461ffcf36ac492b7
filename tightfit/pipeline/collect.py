"""Activation statistics of one block: what each of its linears reads, over all real tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightfit.calib.architecture import Input
from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics


def collect_statistics(
    decoder: Decoder,
    block: nn.Module,
    inputs: Sequence[Input],
    hidden: HiddenStates,
    batches: Sequence[Sequence[int]],
) -> Mapping[str, InputStatistics]:
    """Statistics of every distinct input of the block, by the input's name.

    One forward pass; linears that share an input share its Hessian. Padding is dropped before
    anything is accumulated.
    """
    accumulators: dict[str, HessianAccumulator] = {}
    real_BT = torch.empty(0)

    def watch(source: Input) -> Any:
        def before(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x_TI = arguments[0][real_BT]
            if source.name not in accumulators:
                accumulators[source.name] = HessianAccumulator(x_TI.shape[1], x_TI.device)
            accumulators[source.name].add(x_TI)

        return block.get_submodule(source.linears[0]).register_forward_pre_hook(before)

    handles = [watch(source) for source in inputs]
    for batch in batches:
        hidden_BTD, real_BT = hidden.gather(batch)
        real_BT = real_BT.to(decoder.device)
        decoder.run_block(block, hidden_BTD.to(decoder.device))
    for handle in handles:
        handle.remove()
    # Each sum is dropped as its statistics are made.
    return {name: accumulators.pop(name).statistics() for name in list(accumulators)}


def replay(
    decoder: Decoder,
    block: nn.Module,
    hidden: HiddenStates,
    batches: Sequence[Sequence[int]],
    out: HiddenStates,
) -> None:
    """Pass the hidden states through the (quantized) block."""
    for batch in batches:
        hidden_BTD, _ = hidden.gather(batch)
        out.scatter(batch, decoder.run_block(block, hidden_BTD.to(decoder.device)).cpu())
