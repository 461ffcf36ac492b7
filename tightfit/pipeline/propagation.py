"""The calibration's states from block to block of one quantization, in files of its folder.

Through the quantized blocks, whose parameters are those of finished units, or through the original
ones. Each step is done once: what lies whole in the folder is not made again.
"""

from dataclasses import dataclass

from torch import Tensor

from tightfit.calib.experts import expert_names
from tightfit.calib.hidden import plan_batches
from tightfit.calib.precision import products_in
from tightfit.calib.shapes import tensor_shapes
from tightfit.calib.transfer import to_device
from tightfit.pipeline.block_files import BlockFiles, states_name
from tightfit.pipeline.job import UnitResult, block_unit, experts_unit
from tightfit.pipeline.passes import ExpertWeights, pass_experts, pass_trunk, replay
from tightfit.pipeline.routed import Routed
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.unit_names import (
    block_units,
    has_quantized_experts,
    is_mixture,
)
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.quant.registry import get_grid
from tightfit.targets.job_needs import EXPERTS_PER_UNIT

_COPIED_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Propagation:
    """How states get from the embedding to the final norm."""

    shared: Shared

    @property
    def from_original(self) -> bool:
        """Whether through the unquantized blocks."""
        return self.shared.method.from_original

    def start(self, layer: int) -> int:
        """The last block up to `layer` whose entering states are there; makes those of block 0."""
        states = self.shared.states
        there = [n for n in range(layer + 1) if states.has_states(states_name(n))]
        if not there:
            self._embed()
        first = max(there, default=0)
        # What a job that was killed while it dropped them left.
        for past in range(first):
            self.drop(past)
        return first

    def route(self, layer: int) -> None:
        """Pass the states through a mixture's trunk."""
        shared, files = self.shared, BlockFiles(self.shared.folder, layer)
        if files.routed.exists() or self._is_past(layer):
            return
        hidden = shared.states.states(files.entering, shared.lengths)
        block = shared.decoder.block(layer, self._parameters(layer))
        with (
            shared.states.new_states(files.trunk, shared.lengths) as out,
            shared.states.new_states(files.to_experts, shared.lengths) as to_experts,
            products_in(shared.method.precision),
        ):
            batches = plan_batches(hidden.lengths)
            routed = pass_trunk(shared.decoder, block, hidden, batches, out, to_experts)
        routed.save(files.routed)

    def leave(self, layer: int) -> None:
        """Make the states that leave the block; a mixture's tokens were routed."""
        shared, files = self.shared, BlockFiles(self.shared.folder, layer)
        if shared.states.has_states(files.leaving):
            return
        with (
            shared.states.new_states(files.leaving, shared.lengths) as leaving,
            products_in(shared.method.precision),
        ):
            if not is_mixture(shared, layer):
                hidden = shared.states.states(files.entering, shared.lengths)
                block = shared.decoder.block(layer, self._parameters(layer))
                replay(shared.decoder, block, hidden, plan_batches(hidden.lengths), leaving)
                return
            trunk = shared.states.states(files.trunk, shared.lengths)
            for start in range(0, sum(shared.lengths), _COPIED_ROWS):
                rows = slice(start, start + _COPIED_ROWS)
                leaving.store(rows, trunk.rows(rows))
            pass_experts(
                shared.decoder,
                Routed.load(files.routed),
                shared.states.states(files.to_experts, shared.lengths),
                lambda number: self._expert(layer, number),
                leaving,
            )

    def _is_past(self, layer: int) -> bool:
        """Whether nothing of the block is left to do."""
        leaving = BlockFiles(self.shared.folder, layer).leaving
        done = all(map(self.shared.units.has, block_units(self.shared, layer)))
        return done and self.shared.states.has_states(leaving)

    def drop(self, layer: int) -> None:
        """Free the room of what only this block's work needed."""
        files = BlockFiles(self.shared.folder, layer)
        # The routing goes first: without it the rest of a half-dropped block is made again.
        files.routed.unlink(missing_ok=True)
        files.prior.unlink(missing_ok=True)
        for name in (files.trunk, files.to_experts, files.entering):
            self.shared.states.drop_states(name)

    def head_statistics(self, norm_D: Tensor) -> InputStatistics:
        """What the head reads, behind the final norm."""
        shared = self.shared
        name = states_name(shared.checkpoint.dimensions.n_layers)
        hidden = shared.states.states(name, shared.lengths)
        accumulator = HessianAccumulator(norm_D.shape[0], shared.decoder.device)
        with products_in(shared.method.precision):
            for batch in plan_batches(hidden.lengths):
                hidden_BTD, real_BT = hidden.gather(batch)
                real_ND = to_device(hidden_BTD[real_BT], shared.decoder.device)
                accumulator.add(shared.decoder.normalize(real_ND, norm_D))
        return accumulator.statistics()

    def _embed(self) -> None:
        shared = self.shared
        assert shared.calibration is not None
        embedding_VD = shared.weight(shared.checkpoint.architecture.embedding)
        with shared.states.new_states(states_name(0), shared.lengths) as hidden:
            for sample, item in enumerate(shared.calibration.samples):
                embedded_TD = shared.decoder.embed(item.ids, embedding_VD)
                hidden.scatter([sample], embedded_TD[None].cpu())

    def _parameters(self, layer: int) -> dict[str, Tensor]:
        """float32 parameters of a block by logical path, without routed experts."""
        shared = self.shared
        if self.from_original:
            return shared.decoder.load_block(layer, shared.weight)
        unit = shared.units.load(block_unit(layer))
        shapes = tensor_shapes(shared.checkpoint.architecture, shared.checkpoint.dimensions)
        prefix = shared.checkpoint.architecture.tensor(layer, "")
        values = {name: _values(unit, name).reshape(shapes[name]) for name in unit.quantized}
        # What it holds beside the parameters are the scales of a KV cache.
        values |= {name: value for name, value in unit.plain.items() if name in shapes}
        return {
            name.removeprefix(prefix): to_device(value, shared.decoder.device)
            for name, value in values.items()
        }

    def _expert(self, layer: int, number: int) -> ExpertWeights:
        """float32 matrices of a routed expert."""
        shared = self.shared
        names = expert_names(shared.checkpoint.architecture, layer, number)
        unit = UnitResult(quantized={}, plain={})
        if not self.from_original and has_quantized_experts(shared, layer):
            first = number - number % EXPERTS_PER_UNIT
            unit = shared.units.load(experts_unit(layer, first))
        gate_OI, up_OI, down_IO = (
            to_device(
                _values(unit, name) if name in unit.quantized else shared.weight(name),
                shared.decoder.device,
            ).float()
            for name in names
        )
        return gate_OI, up_OI, down_IO


def _values(unit: UnitResult, name: str) -> Tensor:
    """float32 matrix that a reader gets."""
    packed = unit.quantized[name]
    return get_grid(packed.grid).dequantize(packed.unpack())
