"""What every writer gets: each tensor of a model as it shall be stored, loaded when it is written.

A writer stores a quantized tensor's codes and parameters exactly, or refuses; it never rounds.

Shape legend: E matrices of a stack, O output rows, I input columns, R rows of a chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

Rows = Callable[[slice], Tensor]
"""float32 values of a slice of a tensor's first dimension: some rows, or matrices of a stack."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FloatWeight:
    """A tensor that stays floating-point: norms, biases, unquantized matrices."""

    shape: tuple[int, ...]
    """Rows before columns."""
    dtype: torch.dtype
    """How it is to be stored: float32, float16 or bfloat16."""
    load: Callable[[], Tensor]
    """The tensor in any floating dtype; every number of it is exact in `dtype`."""
    load_rows: Callable[[slice], Tensor] | None = None
    """Some of its rows, where they can be had without the others."""

    def part(self, rows: slice | None) -> Tensor:
        """Some of its rows, where they can be had alone, in its dtype; None: all."""
        loaded = self.load() if rows is None or self.load_rows is None else self.load_rows(rows)
        return loaded.to(self.dtype)

    def values(self) -> Tensor:
        """float32: the numbers that every reader must get."""
        return self.part(None).float()

    def rows(self) -> Rows:
        """The same, some rows at a time; the tensor is loaded once."""
        tensor = self.load()
        return lambda rows: tensor[rows].to(self.dtype).float()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedWeight:
    """A matrix on a grid."""

    shape: tuple[int, int]
    """(O, I): output rows and input columns."""
    grid: str
    """Registered name."""
    load: Callable[[], QuantizedTensor]
    group_index_I: Tensor | None = None
    """int32 (I,): group of each column where act-order regrouped them, as in the loaded tensor."""
    input_scale: float | None = None
    """Static FP8 scale of what the linear reads; None: its input is not quantized."""
    load_rows: Callable[[slice], QuantizedTensor] | None = None
    """Some of its rows, where they can be had without the others."""

    def part(self, rows: slice | None) -> QuantizedTensor:
        """Some of its rows, where they can be had alone; None: all."""
        return self.load() if rows is None or self.load_rows is None else self.load_rows(rows)

    def values(self) -> Tensor:
        """float32 (O, I): the numbers that every reader must get."""
        return get_grid(self.grid).dequantize(self.load())

    def rows(self) -> Rows:
        """The same, some rows at a time (R, I); the tensor is loaded once."""
        return tensor_rows(self.load())


Weight = FloatWeight | QuantizedWeight
Weights = Mapping[str, Weight]
"""By checkpoint name, in the model's order; a head tied to the embedding is absent."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StackedWeight:
    """Matrices of one shape, stored the same way, that a GGUF holds as one tensor."""

    parts: Sequence[Weight]
    """E of them: those of the routed experts of a layer, or of the heads of latent attention."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, O, I)."""
        return len(self.parts), *self.parts[0].shape

    def values(self) -> Tensor:
        """float32 (E, O, I), all of it in memory."""
        return torch.stack([part.values() for part in self.parts])

    def rows(self) -> Rows:
        """The same, some matrices at a time; each is loaded when it is asked for."""
        return lambda numbers: torch.stack([part.values() for part in self.parts[numbers]])


def tensor_rows(tensor: QuantizedTensor) -> Rows:
    """The values of a quantized matrix, some rows at a time (R, I)."""
    grid = get_grid(tensor.grid)
    if grid.rows_share_params:
        values_OI = grid.dequantize(tensor)
        return lambda rows: values_OI[rows]

    def dequantize(rows: slice) -> Tensor:
        codes_RI = tensor.codes_OI[rows]
        part = replace(
            tensor,
            shape=(len(codes_RI), tensor.shape[1]),
            codes_OI=codes_RI,
            params={name: param[rows] for name, param in tensor.params.items()},
        )
        return grid.dequantize(part)

    return dequantize


LogicalWeight = Weight | StackedWeight
LogicalWeights = Mapping[str, LogicalWeight]
"""The same by logical name, where experts and heads are stacked."""


def unstacked(weights: LogicalWeights) -> dict[str, Weight]:
    """The weights of a model without stacks, for formats that have none."""
    plain = {name: of for name, of in weights.items() if not isinstance(of, StackedWeight)}
    assert len(plain) == len(weights), "the plan refuses mixtures in this format"
    return plain
