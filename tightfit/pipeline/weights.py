"""The weights of an artifact: from the finished units of a walk, or from a plain checkpoint."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.logical import expert_name, is_stack, stored_names
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.export.weights import (
    FloatWeight,
    LogicalWeight,
    LogicalWeights,
    QuantizedWeight,
    StackedWeight,
)
from tightfit.pipeline.job import PackedTensor, Units
from tightfit.quant.grids.integer import IntegerGrid
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Storage names that are no grid."""


def checkpoint_weights(checkpoint: Checkpoint, storage: Mapping[str, str]) -> LogicalWeights:
    """The checkpoint's own tensors; `storage` is by logical name.

    What is on an integer grid there already keeps its codes, scales and zero points.
    """

    def weight(name: str, shape: Shape) -> LogicalWeight:
        stored_as = storage[name]
        if stored_as in FLOAT_DTYPES:
            return checkpoint_float(checkpoint, name, shape, stored_as)
        names = stored_names(name, checkpoint.dimensions)
        parts = [_kept_weight(checkpoint, stored, shape[-2:], stored_as) for stored in names]
        return StackedWeight(parts=parts) if is_stack(name) else parts[0]

    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return {name: weight(name, shape) for name, shape in shapes.items()}


def _kept_weight(
    checkpoint: Checkpoint, name: str, shape: Shape, grid_name: str
) -> QuantizedWeight:
    grid = get_grid(grid_name)
    assert isinstance(grid, IntegerGrid)

    def load() -> QuantizedTensor:
        stored = checkpoint.load_integer(name)
        assert stored is not None, "the plan follows what is stored"
        return grid.keep(stored.codes_OI, stored.scale_OG, stored.zero_OG, stored.group_index_I)

    assert checkpoint.packed is not None
    return QuantizedWeight(
        shape=(shape[0], shape[1]),
        grid=grid_name,
        load=load,
        group_index_I=load().group_index_I if checkpoint.packed.act_order else None,
    )


def quantized_weights(
    checkpoint: Checkpoint, storage: Mapping[str, str], units: Units, unit_names: tuple[str, ...]
) -> LogicalWeights:
    """What a walk left; tensors that it had no need to touch come from the checkpoint."""
    # Tensors are written in the order of the units, so each unit is read once.
    load = functools.lru_cache(maxsize=1)(units.load)
    unit_of = {name: unit for unit in unit_names for name in load(unit).names}

    def plain(name: str) -> Tensor:
        return load(unit_of[name]).plain[name]

    def packed(name: str) -> PackedTensor:
        return load(unit_of[name]).quantized[name]

    def matrix(name: str, shape: Shape, rows: slice = slice(None)) -> QuantizedWeight:
        held = packed(name)
        return QuantizedWeight(
            shape=(shape[0], shape[1]),
            grid=held.grid,
            load=lambda: packed(name).rows(rows).unpack(),
            group_index_I=held.group_index_I,
            input_scale=held.input_scale,
        )

    def weight(name: str, shape: Shape) -> LogicalWeight:
        stored_as = storage[name]
        if stored_as in FLOAT_DTYPES:
            if name in unit_of:
                dtype = FLOAT_DTYPES[stored_as]
                return FloatWeight(shape=shape, dtype=dtype, load=functools.partial(plain, name))
            return checkpoint_float(checkpoint, name, shape, stored_as)
        if is_stack(name):
            names = stored_names(name, checkpoint.dimensions)
            return StackedWeight(parts=[matrix(stored, shape[1:]) for stored in names])
        if len(shape) == 3:
            height = shape[1]
            heads = [slice(n * height, (n + 1) * height) for n in range(shape[0])]
            return StackedWeight(parts=[matrix(name, shape[1:], rows) for rows in heads])
        return matrix(name, shape)

    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return {name: weight(name, shape) for name, shape in shapes.items()}


def checkpoint_float(
    checkpoint: Checkpoint, name: str, shape: Shape, stored_as: str
) -> FloatWeight | StackedWeight:
    """A float tensor of the checkpoint; routed experts are loaded one by one."""

    def weight(name: str, shape: Shape) -> FloatWeight:
        has_rows = name in checkpoint.stored
        return FloatWeight(
            shape=shape,
            dtype=FLOAT_DTYPES[stored_as],
            load=functools.partial(checkpoint.load, name),
            load_rows=functools.partial(checkpoint.load_rows, name) if has_rows else None,
        )

    if not is_stack(name):
        return weight(name, shape)
    experts = (expert_name(name, number) for number in range(shape[0]))
    return StackedWeight(parts=[weight(stored, shape[1:]) for stored in experts])
