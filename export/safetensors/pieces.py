"""What a checkpoint's file is made of: tensors that are known before they are loaded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.export.weights import FloatWeight


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One stored tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Tensors that are made together: the parts of one linear, or a float tensor."""

    specs: tuple[TensorSpec, ...]
    load: Callable[[], Sequence[Tensor]]
    """The tensors in the order of `specs`, with their dtypes and shapes."""

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(spec.nbytes for spec in self.specs)


def float_piece(name: str, weight: FloatWeight) -> Piece:
    """A tensor that stays floating-point."""
    spec = TensorSpec(name=name, dtype=weight.dtype, shape=weight.shape)
    return Piece(specs=(spec,), load=lambda: [weight.load().to(weight.dtype)])


def module_name(weight_name: str) -> str:
    """`model.layers.0.mlp.up_proj` of `model.layers.0.mlp.up_proj.weight`."""
    assert weight_name.endswith(".weight"), weight_name
    return weight_name.removesuffix(".weight")
