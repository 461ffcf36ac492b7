"""Rounding without calibration: every unit by itself, straight from the checkpoint's files.

Columns count alike, or as an importance matrix that somebody else measured says. An FP8 matrix that
goes onto a grid of the same blocks keeps its bytes: nothing is rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.calib.logical import expert_name, is_stack
from tightfit.pipeline.executors.base import Executor
from tightfit.pipeline.job import PackedTensor, UnitResult, block_unit, experts_unit
from tightfit.pipeline.quantize import join_rows, quantize_rounded
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.unit_names import (
    EMBEDDING_UNIT,
    HEAD_UNIT,
    expert_groups,
    model_units,
)
from tightfit.quant.grids.float8 import Float8Grid
from tightfit.reporter import Reporter


@dataclass(frozen=True, slots=True)
class ConvertTask:
    """Round the matrices of one unit."""

    unit: str
    names: tuple[str, ...]
    """Logical names."""
    experts: range | None = None
    """Of stacks: the experts of the unit."""

    @property
    def key(self) -> str:
        """Its unit."""
        return self.unit

    def run(self, shared: Shared) -> Sequence["ConvertTask"]:
        """Save the unit."""
        if shared.units.has(self.unit):
            return ()
        quantized: dict[str, PackedTensor] = {}
        for name in self.names:
            for number in self.experts or (None,):
                stored = name if number is None else expert_name(name, number)
                quantized |= _round(shared, name, stored, number).quantized
        shared.units.save(self.unit, UnitResult(quantized=quantized, plain={}))
        return ()


def convert(shared: Shared, executor: Executor[Shared], reporter: Reporter) -> None:
    """Finish every unit that is not finished yet."""
    names = model_units(shared)
    with reporter.progress(len(names), "converting") as progress:
        tasks = [task for task in _tasks(shared) if not shared.units.has(task.unit)]
        progress.advance(len(names) - len(tasks))
        for _ in executor.run(tasks):
            progress.advance()


def _tasks(shared: Shared) -> list[ConvertTask]:
    """All units, in the order of the model."""
    architecture, dimensions = shared.checkpoint.architecture, shared.checkpoint.dimensions
    ends = {
        EMBEDDING_UNIT: architecture.embedding,
        HEAD_UNIT: architecture.head,
    }
    tasks = {
        unit: ConvertTask(unit, tuple(n for n in [name] if n in shared.grids))
        for unit, name in ends.items()
    }
    for layer in range(dimensions.n_layers):
        prefix = architecture.tensor(layer, "")
        inside = [name for name in shared.grids if name.startswith(prefix)]
        single = tuple(name for name in inside if not is_stack(name))
        stacks = tuple(name for name in inside if is_stack(name))
        tasks[block_unit(layer)] = ConvertTask(block_unit(layer), single)
        for experts in expert_groups(shared, layer):
            unit = experts_unit(layer, experts.start)
            tasks[unit] = ConvertTask(unit, stacks, experts)
    return [tasks[unit] for unit in model_units(shared)]


def _round(shared: Shared, name: str, stored: str, number: int | None) -> UnitResult:
    grid = shared.grids[name]
    kept = shared.checkpoint.load_float8(stored)
    if kept is not None and isinstance(grid, Float8Grid):
        same = grid.keep(kept.values_OI, kept.scale)
        if same is not None:
            return UnitResult(quantized={stored: PackedTensor.pack(same)}, plain={})
    weight = shared.weight(stored)
    importance = shared.imatrix.importance(name, number) if shared.imatrix else None
    if weight.ndim == 2:
        return quantize_rounded(stored, weight, grid, importance)
    # Heads of latent attention, each with an importance of its own; packed as rows of all.
    heads = [
        quantize_rounded(stored, of, grid, None if importance is None else importance[head])
        for head, of in enumerate(weight)
    ]
    return UnitResult(quantized={stored: join_rows([h.quantized[stored] for h in heads])}, plain={})
