"""The walk: one decoder block in memory at a time, quantized on what reaches it.

For each block: load its parameters, pass the calibration's hidden states through it to collect
statistics, quantize, pass the states on through the quantized block, drop everything. So every
block is calibrated on the errors of those before it. With `from_original` the states pass through
the blocks as they are: no block waits for another then, and workers on many machines share them.
The embedding is rounded by itself; the head is calibrated on the final norm's output. A matrix
without a grid stays as it is in the checkpoint.

Of a mixture the trunk comes first; then all tokens are routed, and groups of experts are quantized
each on the tokens that visit them.

Units, and states between blocks, are whole or absent. An interrupted job goes on from the last
states before the first unit that is missing or damaged.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tightfit.pipeline.block_files import states_name
from tightfit.pipeline.executors.base import Executor, Task
from tightfit.pipeline.executors.serial import SerialExecutor
from tightfit.pipeline.job import UnitResult, block_unit
from tightfit.pipeline.propagation import Propagation
from tightfit.pipeline.quantize import quantize_head, quantize_rounded
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.tasks import BlockTask, ExpertsTask
from tightfit.pipeline.unit_names import (
    EMBEDDING_UNIT,
    HEAD_UNIT,
    block_units,
    expert_groups,
    is_mixture,
    model_units,
)
from tightfit.reporter import Progress, Reporter


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Walk:
    """One pass over a model."""

    shared: Shared
    executor: Executor[Shared]

    def run(self, reporter: Reporter) -> None:
        """Finish every unit that is not finished yet."""
        names = model_units(self.shared)
        with reporter.progress(len(names), "quantizing") as progress:
            missing = {unit for unit in names if not self.shared.units.has(unit)}
            progress.advance(len(names) - len(missing))
            if EMBEDDING_UNIT in missing:
                self._embedding()
                progress.advance()
            n_blocks = self.shared.checkpoint.dimensions.n_layers
            open_layers = [
                n for n in range(n_blocks) if missing.intersection(block_units(self.shared, n))
            ]
            if HEAD_UNIT in missing:
                open_layers.append(n_blocks)
            if open_layers:
                first = self._propagation.start(open_layers[0])
                layers = range(first, min(open_layers[-1] + 1, n_blocks))
                self._blocks(layers, missing, progress)
            if HEAD_UNIT in missing:
                self._head()
                progress.advance()

    @property
    def _propagation(self) -> Propagation:
        return Propagation(shared=self.shared)

    def _blocks(self, layers: Sequence[int], missing: set[str], progress: Progress) -> None:
        if self.shared.method.from_original:
            self._run(self._blocks_as_they_are(layers), missing, progress)
            return
        for layer in layers:
            self._run([BlockTask(layer=layer)], missing, progress)
            if is_mixture(self.shared, layer):
                self._propagation.route(layer)
                self._run(_experts_tasks(self.shared, layer), missing, progress)
            self._propagation.leave(layer)
            self._propagation.drop(layer)

    def _blocks_as_they_are(self, layers: Iterable[int]) -> Iterator[BlockTask]:
        """Pass the states on, block after block, and give out each block's work.

        Who does all of it alone passes through a dense block once, for both.
        """
        alone = isinstance(self.executor, SerialExecutor)
        for layer in layers:
            is_dense = not is_mixture(self.shared, layer)
            if not is_dense:
                self._propagation.route(layer)
            once = alone and is_dense and not self.shared.units.has(block_unit(layer))
            if not once:
                self._propagation.leave(layer)
            then = tuple(_experts_tasks(self.shared, layer))
            yield BlockTask(layer=layer, then=then, passes_on=once)

    def _run(self, tasks: Iterable[Task[Shared]], missing: set[str], progress: Progress) -> None:
        for task in self.executor.run(tasks):
            if task.key in missing:
                progress.advance()
            assert isinstance(task, BlockTask | ExpertsTask)
            units = block_units(self.shared, task.layer)
            if self.shared.method.from_original and all(map(self.shared.units.has, units)):
                self._propagation.drop(task.layer)

    def _embedding(self) -> None:
        """Round the embedding where it has a grid of its own."""
        shared = self.shared
        name = shared.checkpoint.architecture.embedding
        result = UnitResult(quantized={}, plain={})
        if name in shared.grids and not shared.checkpoint.tied_head:
            embedding_VD = shared.weight(name)
            result = quantize_rounded(name, embedding_VD, shared.grids[name])
        shared.units.save(EMBEDDING_UNIT, result)

    def _head(self) -> None:
        shared, names = self.shared, self.shared.checkpoint.architecture
        norm_D = shared.weight(names.final_norm).to(shared.plain_dtype).float()
        name = names.embedding if shared.checkpoint.tied_head else names.head
        result = UnitResult(quantized={}, plain={})
        if name in shared.grids:
            result = quantize_head(
                name,
                shared.weight(name),
                self._propagation.head_statistics(norm_D),
                shared.grids[name],
                shared.method,
            )
        shared.units.save(HEAD_UNIT, replace(result, plain={names.final_norm: norm_D}))
        shared.states.drop_states(states_name(shared.checkpoint.dimensions.n_layers))


def _experts_tasks(shared: Shared, layer: int) -> list[ExpertsTask]:
    return [ExpertsTask(layer=layer, experts=experts) for experts in expert_groups(shared, layer)]
