"""Activation statistics of one block: what each of its linears reads, over all real tokens.

Latent attention: `v_b_proj` reads what the checkpoint's `kv_b_proj` reads; `k_b_proj` reads, head
by head, the part of the queries without rope (`tightfit.calib.deepseek_v3`). Routed experts are not
looked at here: each sees tokens of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightfit.calib.decoder import Decoder
from tightfit.calib.family import Input
from tightfit.calib.hidden import HiddenStates
from tightfit.calib.logical import is_stack
from tightfit.calib.transfer import to_device
from tightfit.pipeline.kv_range import KvRange
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics

BlockStatistics = Mapping[str, InputStatistics | tuple[InputStatistics, ...]]
"""By the input's name; of each head where every head reads its own part."""
_MODULES = {"self_attn.v_b_proj": "self_attn.kv_b_proj"}
"""Modules of transformers that read what a logical linear reads."""
_PER_HEAD = "self_attn.k_b_proj"


class _AllSeenError(Exception):
    """Every input was read: what the block would still compute is not asked for."""


def collect_statistics(
    decoder: Decoder,
    block: nn.Module,
    inputs: Sequence[Input],
    hidden: HiddenStates,
    batches: Sequence[Sequence[int]],
    kv_range: KvRange | None = None,
    leaving: HiddenStates | None = None,
) -> BlockStatistics:
    """Statistics of every distinct input of the block, and the range of its keys and values.

    One forward pass; linears that share an input share its Hessian. Padding is dropped before
    anything is accumulated. `leaving` gets what the block makes of `hidden`; without it a pass ends
    where the last input is read, which saves a dense block's largest product.
    """
    accumulators: dict[str, HessianAccumulator] = {}
    heads: dict[str, list[HessianAccumulator]] = {}
    real_BT = torch.empty(0)
    is_full = False
    watched = {source.name for source in inputs if not is_stack(source.linears[0])}
    awaited: set[str] = set()

    def seen(source: Input) -> None:
        awaited.remove(source.name)
        if not awaited and leaving is None:
            raise _AllSeenError

    def watch(source: Input) -> Any:
        def before(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # Attention passes its latents with a dimension for the one head that they are.
            x_BTI = arguments[0].reshape(*real_BT.shape, -1)
            x_TI = x_BTI.flatten(0, 1) if is_full else x_BTI[real_BT]
            if source.name not in accumulators:
                accumulators[source.name] = HessianAccumulator(x_TI.shape[1], x_TI.device)
            accumulators[source.name].add(x_TI)
            seen(source)

        module = _MODULES.get(source.linears[0], source.linears[0])
        return block.get_submodule(module).register_forward_pre_hook(before)

    def watch_heads(source: Input) -> Any:
        mla = decoder.dimensions.mla
        assert mla is not None
        n_heads, width = decoder.dimensions.n_heads, mla.qk_nope_head_dim

        def after(_module: nn.Module, _arguments: Any, queries_BTO: Tensor) -> None:
            queries_TO = queries_BTO.flatten(0, 1) if is_full else queries_BTO[real_BT]
            heads_THI = queries_TO.reshape(len(queries_TO), n_heads, -1)[:, :, :width]
            if source.name not in heads:
                device = heads_THI.device
                heads[source.name] = [HessianAccumulator(width, device) for _ in range(n_heads)]
            for head, accumulator in enumerate(heads[source.name]):
                accumulator.add(heads_THI[:, head])
            seen(source)

        producer = "self_attn.q_proj" if mla.q_lora_rank is None else "self_attn.q_b_proj"
        return block.get_submodule(producer).register_forward_hook(after)

    handles = [
        watch_heads(source) if source.linears[0] == _PER_HEAD else watch(source)
        for source in inputs
        if not is_stack(source.linears[0])
    ]
    for batch in batches:
        hidden_BTD, real_BT = hidden.gather(batch)
        is_full = bool(real_BT.all())
        real_BT = real_BT.to(decoder.device)
        if kv_range is not None:
            kv_range.real_BT = real_BT
        awaited |= watched
        try:
            made_BTD = decoder.run_block(block, to_device(hidden_BTD, decoder.device), kv_range)
        except _AllSeenError:
            continue
        if leaving is not None:
            leaving.scatter(batch, made_BTD.cpu())
    for handle in handles:
        handle.remove()
    # Each sum is dropped as its statistics are made.
    whole = {name: accumulators.pop(name).statistics() for name in list(accumulators)}
    return whole | {name: tuple(each.statistics() for each in of) for name, of in heads.items()}
