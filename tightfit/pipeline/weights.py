"""The weights of an artifact: from the finished units of a walk, or from a plain checkpoint."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight, Weights
from tightfit.pipeline.job import Units
from tightfit.quant.tensor import QuantizedTensor

FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Storage names that are no grid."""


def checkpoint_weights(checkpoint: Checkpoint, storage: Mapping[str, str]) -> Weights:
    """The checkpoint's own tensors, all of them floats; `storage` is by checkpoint name."""
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return {
        name: FloatWeight(
            shape=shape,
            dtype=FLOAT_DTYPES[storage[name]],
            load=functools.partial(checkpoint.load, name),
        )
        for name, shape in shapes.items()
    }


def quantized_weights(
    checkpoint: Checkpoint, storage: Mapping[str, str], units: Units, unit_names: tuple[str, ...]
) -> Weights:
    """What a walk left; tensors that it had no need to touch come from the checkpoint."""
    # Tensors are written in the order of the units, so each unit is read once.
    load = functools.lru_cache(maxsize=1)(units.load)
    unit_of = {name: unit for unit in unit_names for name in load(unit).names}

    def plain(name: str) -> Tensor:
        return load(unit_of[name]).plain[name]

    def quantized(name: str) -> QuantizedTensor:
        return load(unit_of[name]).quantized[name].unpack()

    def weight(name: str, shape: Shape) -> Weight:
        stored_as = storage[name]
        if stored_as in FLOAT_DTYPES:
            source = plain if name in unit_of else checkpoint.load
            return FloatWeight(
                shape=shape, dtype=FLOAT_DTYPES[stored_as], load=functools.partial(source, name)
            )
        rows, columns = shape
        packed = load(unit_of[name]).quantized[name]
        return QuantizedWeight(
            shape=(rows, columns),
            grid=stored_as,
            load=functools.partial(quantized, name),
            group_index_I=packed.group_index_I,
            input_scale=packed.input_scale,
        )

    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return {name: weight(name, shape) for name, shape in shapes.items()}
