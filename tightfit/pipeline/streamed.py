"""Weights that come onto their grids when the writer asks for them: conversion in one pass.

For a GGUF that nothing calibrates: matrices are read, rounded and packed some rows at a time, in
several threads, and written once. Other formats read a tensor more than once, and take theirs from
the units that `conversion` makes.
"""

import functools

from tightfit.calib.logical import expert_name, is_stack
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.export.weights import LogicalWeight, LogicalWeights, QuantizedWeight, StackedWeight
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.weights import FLOAT_DTYPES, checkpoint_float
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.tensor import QuantizedTensor


def streamed_weights(shared: Shared) -> LogicalWeights:
    """The model as `shared.storage` says; every matrix is rounded when it is loaded."""
    checkpoint, imatrix = shared.checkpoint, shared.imatrix
    # The heads of keys, and those of values, are loaded together and asked for one by one.
    all_heads = functools.lru_cache(maxsize=2)(shared.weight)

    def matrix(name: str, stored: str, shape: Shape, number: int | None = None) -> QuantizedWeight:
        grid = shared.grids[name]

        def load_rows(rows: slice) -> QuantizedTensor:
            importance = imatrix.importance(name, number) if imatrix else None
            return rtn(shared.rows(stored, rows).float(), grid, importance)

        return QuantizedWeight(
            shape=(shape[0], shape[1]),
            grid=grid.name,
            load=lambda: load_rows(slice(None)),
            load_rows=load_rows,
        )

    def head(name: str, shape: Shape, number: int) -> QuantizedWeight:
        grid = shared.grids[name]

        def load() -> QuantizedTensor:
            importance = imatrix.importance(name, number) if imatrix else None
            return rtn(all_heads(name)[number].float(), grid, importance)

        return QuantizedWeight(shape=(shape[0], shape[1]), grid=grid.name, load=load)

    def weight(name: str, shape: Shape) -> LogicalWeight:
        stored_as = shared.storage[name]
        if stored_as in FLOAT_DTYPES:
            return checkpoint_float(checkpoint, name, shape, stored_as)
        if len(shape) == 2:
            return matrix(name, name, shape)
        if not is_stack(name):
            return StackedWeight(parts=[head(name, shape[1:], n) for n in range(shape[0])])
        experts = [
            matrix(name, expert_name(name, number), shape[1:], number) for number in range(shape[0])
        ]
        return StackedWeight(parts=experts)

    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return {name: weight(name, shape) for name, shape in shapes.items()}
