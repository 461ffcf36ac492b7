"""Passing the calibration's hidden states through a block, some sequences or one expert at a time.

A dense block is one pass. A mixture is two: the trunk, which also says where each token goes, and
then every routed expert in ascending order, which adds to what the trunk gave. So no more than one
expert is ever in memory, and the sum of a token does not depend on who computes it.

Shape legend: T tokens, D hidden width, O output rows, I input columns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tightfit.calib.decoder import Decoder
from tightfit.calib.experts import routing_of, run_expert
from tightfit.calib.hidden import BATCH_TOKENS, HiddenStates
from tightfit.calib.transfer import to_device
from tightfit.pipeline.routed import Routed

ExpertWeights = tuple[Tensor, Tensor, Tensor]
"""gate and up (O, I), down (I, O) of an expert, float32."""


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
        out.scatter(batch, decoder.run_block(block, to_device(hidden_BTD, decoder.device)).cpu())


def pass_trunk(
    decoder: Decoder,
    block: nn.Module,
    hidden: HiddenStates,
    batches: Sequence[Sequence[int]],
    out: HiddenStates,
    to_experts: HiddenStates,
) -> Routed:
    """Pass the hidden states through a mixture block without its routed experts.

    `out` gets the block's output without them, `to_experts` the tokens as they read them.
    """
    assert decoder.dimensions.moe is not None
    shape = (sum(hidden.lengths), decoder.dimensions.moe.n_experts_per_token)
    experts_TK = torch.empty(shape, dtype=torch.int64)
    weights_TK = torch.empty(shape)
    for batch in batches:
        hidden_BTD, real_BT = hidden.gather(batch)
        out.scatter(batch, decoder.run_block(block, to_device(hidden_BTD, decoder.device)).cpu())
        routing = routing_of(block)
        assert routing is not None, "only mixtures have a trunk"
        rows_T, real_T = hidden.places(batch), real_BT.flatten()
        to_experts.store(rows_T, routing.x_TI.cpu()[real_T])
        experts_TK[rows_T] = routing.experts_TK.cpu()[real_T]
        weights_TK[rows_T] = routing.weights_TK.cpu()[real_T]
    return Routed(experts_TK=experts_TK, weights_TK=weights_TK)


def pass_experts(
    decoder: Decoder,
    routed: Routed,
    to_experts: HiddenStates,
    weights: Callable[[int], ExpertWeights],
    out: HiddenStates,
) -> None:
    """Add what the routed experts give to `out`, which holds what the trunk gave."""
    assert decoder.dimensions.moe is not None
    for expert in range(decoder.dimensions.moe.n_routed_experts):
        rows_T, weights_T = routed.of(expert)
        if not len(rows_T):
            continue
        gate_OI, up_OI, down_IO = weights(expert)
        for start in range(0, len(rows_T), BATCH_TOKENS):
            part = slice(start, start + BATCH_TOKENS)
            x_TI = to_device(to_experts.rows(rows_T[part]), decoder.device)
            y_TI = run_expert(gate_OI, up_OI, down_IO, x_TI).cpu()
            out.add(rows_T[part], weights_T[part, None] * y_TI)
