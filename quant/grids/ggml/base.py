"""What all ggml types share: codes on a level table, blocks of bytes, the walk over row chunks.

A type says how a block's parameters are fitted, what scale (and offset) they give each weight,
and how a block is laid out in bytes.

Shape legend: O output rows, I input columns, K columns of the spans at hand, S spans per row,
T weights of a sub-block, J sub-blocks of a span, U spans of a row chunk, B = O * S blocks,
N bytes of a block, P stored values per block.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.grid import Grid, Lattice, Steps
from tightfit.quant.grids.ggml.blocks import BYTE_BITS
from tightfit.quant.grids.ggml.kernels.rounding import round_weights
from tightfit.quant.grids.ggml.kernels.weigh import Array
from tightfit.quant.grids.ggml.levels import Levels, UniformLevels
from tightfit.quant.tensor import Params, QuantizedTensor

CHUNK_WEIGHTS = 1 << 24
"""Weights fitted at a time on an accelerator, where launches cost more than memory."""
FLOAT16_MAX = 65504.0


class GgmlGrid(Grid):
    """A block format of ggml."""

    levels: ClassVar[Levels]
    block_bytes: ClassVar[int]
    sub_block: ClassVar[int]
    """Weights that share a scale."""
    largest_scale: ClassVar[int] = 1
    """Largest magnitude of a sub-block's integer scale."""

    @property
    def reach(self) -> float:
        """The largest level times the largest float16 and the largest integer scale on it."""
        return max(-self.levels.low, self.levels.high) * self.largest_scale * FLOAT16_MAX

    @property
    def steps(self) -> Steps | None:
        """None for a codebook."""
        if not isinstance(self.levels, UniformLevels):
            return None
        return Steps(top_code=self.levels.last - self.levels.first, zero=-self.levels.first)

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise `QuantizationError` unless whole blocks fill each row."""
        if shape[1] % self.span:
            raise QuantizationError(
                f"{self.name} cannot hold rows of {shape[1]} weights",
                allowed=f"{self.name} stores blocks of {self.span}: the width must be a multiple",
                hint=_which_take(shape[1]),
            )

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bits of a block divided by its weights; the same for every shape that fits."""
        self.check_shape(shape)
        return self.block_bytes * BYTE_BITS / self.span

    def search(self, w_OK: Tensor, importance_OK: Tensor | None = None) -> Params:
        """The stored parameters, as ggml weighs them."""
        if w_OK.device.type == "cpu":
            return self._fit_compiled(w_OK, importance_OK)
        return self._fit_in_chunks(w_OK, importance_OK)

    def _fit_compiled(self, w_OK: Tensor, importance_OK: Tensor | None) -> Params:
        """The fit by the kernels for CPUs: parameters (O, S) or (O, S * P)."""
        importance_UJT = None if importance_OK is None else self._in_blocks(importance_OK)
        fitted = self._fit_natural(self._in_blocks(w_OK), importance_UJT)
        return {name: part.reshape(len(w_OK), -1) for name, part in fitted.items()}

    def _in_blocks(self, values_OK: Tensor) -> Array:
        """float32 (U, J, T) in the order of the rows."""
        n_sub_blocks = self.span // self.sub_block
        contiguous = values_OK.to(torch.float32).contiguous().numpy()
        blocks: Array = contiguous.reshape(-1, n_sub_blocks, self.sub_block)
        return blocks

    def _fit_in_chunks(self, w_OK: Tensor, importance_OK: Tensor | None) -> Params:
        """The same in torch, for other devices."""
        n_rows, n_columns = w_OK.shape
        if importance_OK is not None:
            importance_OK = importance_OK.expand(n_rows, n_columns)
        chunk_rows = max(1, CHUNK_WEIGHTS // n_columns)
        parts = [
            self._fit_rows(
                w_OK[row : row + chunk_rows],
                None if importance_OK is None else importance_OK[row : row + chunk_rows],
            )
            for row in range(0, n_rows, chunk_rows)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def round(self, w_OK: Tensor, lattice: Lattice) -> Tensor:
        """uint8 codes (O, K) of the nearest levels; where the scale is 0, that of level 0."""
        if self.steps is not None and w_OK.device.type == "cpu":
            return round_weights(w_OK, lattice, self.steps)
        shifted_OK = w_OK if lattice.offset_OK is None else w_OK - lattice.offset_OK
        position_OK = shifted_OK / lattice.scale_OK
        return self.levels.code(position_OK.masked_fill_(lattice.scale_OK == 0, 0.0))

    def decode(self, codes_OK: Tensor, lattice: Lattice) -> Tensor:
        """float32 (O, K): scale * level, then the offset, each step rounded as ggml rounds it."""
        values_OK = self.levels.value(codes_OK).mul_(lattice.scale_OK)
        return values_OK if lattice.offset_OK is None else values_OK.add_(lattice.offset_OK)

    def pack(self, tensor: QuantizedTensor) -> Tensor:
        """uint8 (O, S * block_bytes), exactly ggml's blocks."""
        assert tensor.grid == self.name, f"{tensor.grid} codes given to {self.name}"
        assert tensor.group_index_I is None, "ggml blocks know no act-order"
        self.check_shape(tensor.shape)
        n_rows, n_columns = tensor.shape
        n_blocks = n_rows * (n_columns // self.span)
        codes_BK = tensor.codes_OI.contiguous().view(n_blocks, self.span)
        params_BP = {
            name: part.contiguous().view(n_blocks, -1) for name, part in tensor.params.items()
        }
        return self._pack_blocks(codes_BK, params_BP).reshape(n_rows, -1)

    def unpack(self, data: Tensor, shape: tuple[int, int]) -> QuantizedTensor:
        """The inverse of `pack`; `data` is uint8 (O, S * block_bytes)."""
        self.check_shape(shape)
        n_rows, n_columns = shape
        codes_BK, params_BP = self._unpack_blocks(data.reshape(-1, self.block_bytes))
        return QuantizedTensor(
            grid=self.name,
            shape=shape,
            codes_OI=codes_BK.reshape(n_rows, n_columns),
            params={name: part.reshape(n_rows, -1) for name, part in params_BP.items()},
        )

    @abstractmethod
    def _fit_natural(self, x_UJT: Array, importance_UJT: Array | None) -> Mapping[str, Tensor]:
        """Stored parameters of each span, (U,) or (U, J), in their stored dtypes.

        An importance of fewer spans than `x_UJT` is that of one row, for all rows.
        """

    @abstractmethod
    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        """Stored parameters of each span, (U,) or (J, U), in their stored dtypes."""

    @abstractmethod
    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        """uint8 (B, N) of one row of codes and parameters per block."""

    @abstractmethod
    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        """The inverse of `_pack_blocks`: uint8 codes (B, K) and parameters (B, P)."""

    def _fit_rows(self, w_OK: Tensor, importance_OK: Tensor | None) -> Params:
        """Parameters of a few rows, (O, S) or (O, S * P) in the order of the columns."""
        importance_TJU = None if importance_OK is None else self._by_sub_block(importance_OK)
        fitted = self._fit_blocks(self._by_sub_block(w_OK), importance_TJU)
        n_rows, n_spans = len(w_OK), w_OK.shape[1] // self.span
        return {
            name: part.reshape(-1, n_rows, n_spans).permute(1, 2, 0).reshape(n_rows, -1)
            for name, part in fitted.items()
        }

    def _by_sub_block(self, values_OK: Tensor) -> Tensor:
        """Contiguous float32 (T, J, U): sums over a sub-block then run over whole rows."""
        n_sub_blocks = self.span // self.sub_block
        values_OSJT = values_OK.reshape(len(values_OK), -1, n_sub_blocks, self.sub_block)
        values_TJOS = values_OSJT.permute(3, 2, 0, 1).to(torch.float32)
        return values_TJOS.reshape(self.sub_block, n_sub_blocks, -1).contiguous()


def per_weight(part_OG: Tensor, group: int) -> Tensor:
    """Repeat a value per group for each of its weights, (O, G) to (O, G * group); maybe a view."""
    n_rows, n_groups = part_OG.shape
    return part_OG[:, :, None].expand(n_rows, n_groups, group).reshape(n_rows, -1)


def _which_take(width: int) -> str:
    """Names the family whose blocks divide the width."""
    short_block, k_block = 32, 256
    if width % short_block:
        return f"no ggml grid takes a width of {width}: keep the tensor in BF16 or F16"
    short = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL"
    k_quants = "" if width % k_block else ", and all K-quants and IQ4_XS"
    return f"grids that take a width of {width}: {short}{k_quants}"
