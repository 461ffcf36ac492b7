"""FP8 checkpoints: weights stored as E4M3 with scales, given back in float32.

    w[o, i] = q[o, i] * scale[o // block_rows, i // block_columns]

The scale is a *multiplier* in both forms read here: DeepSeek's `weight_scale_inv` (128x128 blocks;
the name says inverse because it is the inverse of what the quantizer multiplied by) and
compressed-tensors' `weight_scale` (one a tensor, one a row, or blocks). compressed-tensors
multiplies in the scale's own dtype, mostly bfloat16; we multiply in float32, which is closer to
the numbers that FP8 hardware computes with.

Shape legend: O output rows, I input columns, R row blocks, C column blocks.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Strategy = Literal["tensor", "channel", "block"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Scheme:
    """How a checkpoint stores the scales of its FP8 weights."""

    suffix: Literal["_scale_inv", "_scale"]
    """What follows a weight's name in the name of its scale."""
    strategies: frozenset[Strategy]
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, for the `block` strategy."""

    def scale_name(self, weight: str) -> str:
        """Name of the scale of a weight."""
        return weight + self.suffix

    def scale_shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Shapes that the scale of a weight of this shape may have."""
        rows, columns = shape
        allowed: list[tuple[int, ...]] = []
        if "block" in self.strategies:
            assert self.block is not None
            allowed.append((math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1])))
        if "channel" in self.strategies:
            allowed += [(rows, 1), (rows,)]
        if "tensor" in self.strategies:
            allowed += [(), (1,), (1, 1)]
        return tuple(allowed)

    def scale_rows(self, scale: Tensor, rows: slice, n_rows: int) -> Tensor:
        """The scale of some of a weight's rows, the first of which begins a block."""
        start, stop, _ = rows.indices(n_rows)
        if scale.numel() == 1:
            return scale
        if scale.shape in ((n_rows,), (n_rows, 1)):
            return scale[start:stop]
        assert self.block is not None
        height = self.block[0]
        assert start % height == 0, "rows of part of a block"
        return scale[start // height : math.ceil(stop / height)]

    def grid(self, scale_shape: tuple[int, ...], n_rows: int) -> str:
        """Name of the grid of a weight by the shape of its scale, e.g. `fp8-e4m3-block128`."""
        fits = {
            "tensor": math.prod(scale_shape) == 1,
            "channel": scale_shape in ((n_rows,), (n_rows, 1)),
            "block": True,
        }
        strategy = next(name for name in STRATEGIES if name in self.strategies and fits[name])
        if self.block is None or strategy != "block":
            return f"fp8-e4m3-{strategy}"
        return "fp8-e4m3-block" + "x".join(map(str, dict.fromkeys(self.block)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredFloat8:
    """An FP8 matrix as its file holds it."""

    values_OI: Tensor
    """float8_e4m3fn (O, I)."""
    scale: Tensor
    """Multiplier, of any of the shapes in `Float8Scheme.scale_shapes`."""


def dequantize(q_OI: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """float32 (O, I) of E4M3 weights; a scale of any of the shapes in `Float8Scheme.scale_shapes`.

    Block by block: only the result is ever held in full.
    """
    n_rows, n_columns = q_OI.shape
    w_OI = q_OI.to(torch.float32)
    # By shape, not by count: o_proj of DeepSeek-R1 has 7168 rows and 56 x 128 = 7168 blocks.
    if scale.numel() == 1 or scale.shape in ((n_rows,), (n_rows, 1)):
        return w_OI.mul_(scale.to(torch.float32).reshape(-1, 1))
    assert block is not None
    block_rows, block_columns = block
    scale_RI = scale.to(torch.float32).repeat_interleave(block_columns, dim=1)[:, :n_columns]
    for band, scale_I in enumerate(scale_RI):
        w_OI[band * block_rows : (band + 1) * block_rows].mul_(scale_I)
    return w_OI
