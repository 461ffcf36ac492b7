"""Units of work: what one worker does by itself, from files of the job to a unit of the job.

A task finds its inputs and leaves its result in the job's folder, so that any process on any
machine that sees the folder can run it, and a task whose unit is finished is done at once.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from tightfit.calib.experts import EXPERT_STACKS, expert_names
from tightfit.calib.hidden import plan_batches
from tightfit.calib.logical import expert_name, logical_name
from tightfit.calib.precision import products_in
from tightfit.pipeline.block_files import BlockFiles
from tightfit.pipeline.collect import collect_statistics
from tightfit.pipeline.expert_groups import (
    Expert,
    QuantizedExpert,
    Tokens,
    quantize_experts,
)
from tightfit.pipeline.job import PackedTensor, UnitResult, block_unit, experts_unit
from tightfit.pipeline.kv_range import KvRange
from tightfit.pipeline.quantize import quantize_block
from tightfit.pipeline.routed import ExpertsPrior, Routed
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.trunk import judges_of, trunk_kind
from tightfit.pipeline.unit_names import block_units, is_mixture
from tightfit.quant.algorithms.hessian import InputStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTask:
    """Quantize a block on what enters it; of a mixture its trunk."""

    layer: int
    then: Sequence["ExpertsTask"] = field(default=(), compare=False)
    """What can be done afterwards."""
    passes_on: bool = False
    """Whether its pass through the original block also makes the states that leave it."""

    @property
    def key(self) -> str:
        """Its unit."""
        return block_unit(self.layer)

    def run(self, shared: Shared) -> Sequence["ExpertsTask"]:
        """Save the unit, and for a mixture what its experts need."""
        files = BlockFiles(shared.folder, self.layer)
        kind = shared.decoder.block_kind(self.layer)
        waiting = {unit for unit in block_units(shared, self.layer) if not shared.units.has(unit)}
        if not waiting or (self.key not in waiting and files.prior.exists()):
            return self.then
        checkpoint, decoder = shared.checkpoint, shared.decoder
        hidden = shared.states.states(files.entering, shared.lengths)
        parameters = decoder.load_block(self.layer, shared.weight)
        kv_range = KvRange() if shared.method.kv_scales else None
        with ExitStack() as stack:
            leaving = None
            if self.passes_on:
                leaving = stack.enter_context(
                    shared.states.new_states(files.leaving, shared.lengths)
                )
            stack.enter_context(products_in(shared.method.precision))
            statistics = collect_statistics(
                decoder,
                decoder.block(self.layer, parameters),
                kind.inputs,
                hidden,
                plan_batches(hidden.lengths),
                kv_range,
                leaving,
            )
        grids = shared.block_grids(self.layer)
        judges = judges_of(shared, self.layer, grids) if shared.method.scales else {}
        quantized = quantize_block(
            trunk_kind(kind, judges),
            parameters,
            statistics,
            grids | {judge: grids[logical_name(judge)] for judge in judges},
            shared.method,
            plain_dtype=shared.plain_dtype,
            n_heads=decoder.dimensions.n_heads,
            n_kv_heads=decoder.dimensions.n_kv_heads,
            judges=judges,
        )
        if is_mixture(shared, self.layer):
            seen = quantized.statistics["mlp_in"]
            assert isinstance(seen, InputStatistics)
            ExpertsPrior(statistics=seen, scale_I=quantized.scales.get("mlp_in")).save(files.prior)
        unit = quantized.unit(checkpoint.architecture.tensor(self.layer, ""))
        if kv_range is not None:
            scales = {
                checkpoint.architecture.tensor(self.layer, name): torch.tensor([scale])
                for name, scale in kv_range.scales().items()
            }
            unit = replace(unit, plain={**unit.plain, **scales})
        shared.units.save(self.key, unit)
        return self.then


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsTask:
    """Quantize a group of a block's routed experts on the tokens that visit them."""

    layer: int
    experts: range

    @property
    def key(self) -> str:
        """Its unit."""
        return experts_unit(self.layer, self.experts.start)

    def run(self, shared: Shared) -> Sequence["ExpertsTask"]:
        """Save the unit."""
        if shared.units.has(self.key):
            return ()
        files = BlockFiles(shared.folder, self.layer)
        decoder, architecture = shared.decoder, shared.checkpoint.architecture
        prior = ExpertsPrior.load(files.prior, decoder.device)
        grids = shared.block_grids(self.layer)
        routed = Routed.load(files.routed)
        tokens = Tokens(
            states=shared.states.states(files.to_experts, shared.lengths),
            # The norm of a quantized trunk has divided them already.
            divisor_I=prior.scale_I if shared.method.from_original else None,
        )
        own = {name: grids[stack] for name, stack in EXPERT_STACKS.items() if stack in grids}
        quantized: list[QuantizedExpert] = []
        for start in range(0, len(self.experts), shared.experts_at_once):
            numbers = self.experts[start : start + shared.experts_at_once]
            experts = [_expert(shared, self.layer, number) for number in numbers]
            quantized += quantize_experts(experts, routed, tokens, prior, own, shared.method)
        packed: dict[str, PackedTensor] = {}
        reports = []
        for number, expert in zip(self.experts, quantized, strict=True):
            for name, tensor in expert.packed.items():
                full = expert_name(architecture.tensor(self.layer, EXPERT_STACKS[name]), number)
                packed[full] = tensor
                reports.append(replace(expert.reports[name], name=full))
        shared.units.save(self.key, UnitResult(quantized=packed, plain={}, reports=tuple(reports)))
        return ()


def _expert(shared: Shared, layer: int, number: int) -> Expert:
    names = expert_names(shared.checkpoint.architecture, layer, number)
    weights = {
        kind: shared.float_weight(name) for kind, name in zip(EXPERT_STACKS, names, strict=True)
    }
    return Expert(number=number, weights=weights)
