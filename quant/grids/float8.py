"""FP8 E4M3 grids: one scale per tensor, per output row, or per 128x128 block.

    w = scale * value(code)

`code` is the bit pattern of OCP FP8 E4M3 ("fn": no infinities, +-448 the largest, 0x7F and 0xFF
are NaN), `scale` a float32 multiplier. 128x128 blocks are DeepSeek-R1's native storage
(`weight_scale_inv`, which despite its name multiplies); blocks at the right and lower edge may be
partial. Source: OCP 8-bit Floating Point Specification 1.0, section 5; DeepSeek-V3 technical
report, section 3.3.

The fit without importance is the formats' own: scale = absmax / 448. With importance it also tries
scales over one octave above, where nothing is clipped but the mantissas fall elsewhere, and
slightly below, where the largest weight is clipped.

Packed row: the codes, then float32 scales, little-endian. Scales that rows share are repeated in
each row, so that the result stays a matrix; `bits_per_weight` counts them once, as a file does.

Shape legend: O output rows, I input columns, K columns at hand; R, C row and column blocks.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tightfit.quant.grid import Grid, Lattice, check_finite
from tightfit.quant.tensor import Params, QuantizedTensor

E4M3_MAX = 448.0
"""Largest finite E4M3 value; the next code is NaN."""
BLOCK = 128
"""Rows and columns of a block in DeepSeek-V3's checkpoints."""
WHOLE = 0
"""Block extent that stands for the whole dimension."""
_BITS_PER_BYTE = 8
_SCALE_BYTES = 4
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Scale of an all-zero block: dividing by zero would make NaN codes."""
_SCALE_FACTORS = (0.85, 0.9, 0.95, *(2 ** (step / 12) for step in range(13)))
"""Candidates around absmax / 448: three that clip, one octave that does not."""


class Float8Grid(Grid):
    """E4M3 with one scale per block of `block_rows` x `block_columns` (0: all)."""

    def __init__(self, name: str, *, block_rows: int, block_columns: int) -> None:
        self.name = name
        self.block_rows = block_rows
        self.block_columns = block_columns
        self.span = block_columns
        self.rows_share_params = block_rows != 1

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Every matrix can be stored: edge blocks may be partial."""

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Eight, and the scales."""
        rows, columns = self._extent(shape)
        n_scales = -(-shape[0] // rows) * -(-shape[1] // columns)
        return _BITS_PER_BYTE * (1 + _SCALE_BYTES * n_scales / (shape[0] * shape[1]))

    @property
    def reach(self) -> float:
        """What float32 holds: its scales are of that type."""
        return torch.finfo(torch.float32).max

    def search(self, w_OK: Tensor, importance_OK: Tensor | None = None) -> Params:
        """`scale` float32 (R, C)."""
        largest_RC = self._block_reduce(w_OK.abs(), "max")
        plain_RC = (largest_RC / E4M3_MAX).clamp_min(_SMALLEST_SCALE)
        if importance_OK is None:
            return {"scale": plain_RC}
        n_rows, n_columns = w_OK.shape
        best_RC = plain_RC
        least_RC = torch.full_like(plain_RC, torch.inf)
        for factor in _SCALE_FACTORS:
            scale_RC = (plain_RC * factor).clamp_min(_SMALLEST_SCALE)
            lattice = self.lattice({"scale": scale_RC}, n_rows, n_columns)
            rounded_OK = self.decode(self.round(w_OK, lattice), lattice)
            squared_OK = rounded_OK.sub_(w_OK).square_().mul_(importance_OK)
            error_RC = self._block_reduce(squared_OK, "sum")
            best_RC = torch.where(error_RC < least_RC, scale_RC, best_RC)
            least_RC = torch.minimum(error_RC, least_RC)
        return {"scale": best_RC}

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """One scale per weight."""
        rows, columns = self._extent((n_rows, n_columns))
        scale_RC = params["scale"]
        if rows > 1:
            scale_RC = scale_RC.repeat_interleave(rows, dim=0)[:n_rows]
        scale_OK = scale_RC.repeat_interleave(columns, dim=1)[:, :n_columns]
        return Lattice(scale_OK=scale_OK)

    def round(self, w_OK: Tensor, lattice: Lattice) -> Tensor:
        """Bit patterns of the nearest E4M3 values, ties to even, saturating at +-448."""
        # torch's cast turns what exceeds 464 into NaN, so the clamp has to come first.
        scaled_OK = torch.div(w_OK, lattice.scale_OK).clamp_(-E4M3_MAX, E4M3_MAX)
        return scaled_OK.to(torch.float8_e4m3fn).view(torch.uint8)

    def decode(self, codes_OK: Tensor, lattice: Lattice) -> Tensor:
        """Scale * value(code)."""
        return codes_OK.view(torch.float8_e4m3fn).float().mul_(lattice.scale_OK)

    def pack(self, tensor: QuantizedTensor) -> Tensor:
        """uint8 (O, I + 4 C): codes, scales."""
        scale_RC = tensor.params["scale"].contiguous()
        rows, _ = self._extent(tensor.shape)
        scale_OC = scale_RC.repeat_interleave(rows, dim=0)[: tensor.shape[0]]
        return torch.cat([tensor.codes_OI, scale_OC.view(torch.uint8)], dim=1)

    def unpack(self, data: Tensor, shape: tuple[int, int]) -> QuantizedTensor:
        """The inverse of `pack`."""
        rows, columns = self._extent(shape)
        n_columns = shape[1]
        n_column_blocks = -(-n_columns // columns)
        assert data.shape == (shape[0], n_columns + _SCALE_BYTES * n_column_blocks), data.shape
        # `clone` makes storage that is aligned for float32.
        scale_bytes = data[::rows, n_columns:].clone(memory_format=torch.contiguous_format)
        return QuantizedTensor(
            grid=self.name,
            shape=shape,
            codes_OI=data[:, :n_columns].clone(memory_format=torch.contiguous_format),
            params={"scale": scale_bytes.view(torch.float32)},
        )

    def keep(self, values_OI: Tensor, scale: Tensor) -> QuantizedTensor | None:
        """Stored E4M3 values (O, I) and their multipliers as they are; None for another blocking.

        The multipliers are (R, C), or one a row or for all; every finite number of them is kept.
        """
        n_rows, n_columns = values_OI.shape
        rows, columns = self._extent((n_rows, n_columns))
        blocks = (-(-n_rows // rows), -(-n_columns // columns))
        if scale.numel() != blocks[0] * blocks[1] or (scale.ndim == 2 and scale.shape != blocks):
            return None
        scale_RC = scale.to(torch.float32).reshape(blocks)
        check_finite(values_OI.float())
        check_finite(scale_RC)
        return QuantizedTensor(
            grid=self.name,
            shape=(n_rows, n_columns),
            codes_OI=values_OI.contiguous().view(torch.uint8),
            params={"scale": scale_RC},
        )

    def _extent(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self.block_rows or shape[0], self.block_columns or shape[1]

    def _block_reduce(self, values_OK: Tensor, reduction: str) -> Tensor:
        """Maximum or sum of non-negative values over each block (R, C)."""
        n_rows, n_columns = values_OK.shape
        rows, columns = self._extent((n_rows, n_columns))
        padded = functional.pad(values_OK, (0, -n_columns % columns, 0, -n_rows % rows))
        blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        return blocks.amax(dim=(1, 3)) if reduction == "max" else blocks.sum(dim=(1, 3))


FLOAT8_GRIDS: tuple[Grid, ...] = (
    Float8Grid("fp8-e4m3-tensor", block_rows=WHOLE, block_columns=WHOLE),
    Float8Grid("fp8-e4m3-channel", block_rows=1, block_columns=WHOLE),
    Float8Grid("fp8-e4m3-block128", block_rows=BLOCK, block_columns=BLOCK),
)
