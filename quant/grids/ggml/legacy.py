"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 weights with one float16 scale (`_1`: and minimum).

    _0:  w = d * (q - 2^(b-1))        _1:  w = d * q + m

Without importance the parameters are those of ggml's reference quantizers, from the extremes of
the block alone; with importance they are searched. Deviations: the minimum of `_1` may be positive
when searched, and Q8_0 heeds importance (ggml ignores it).

Source: ggml-common.h (layouts), ggml-quants.c (`quantize_row_q4_0_ref` and its kin).

Shape legend: B blocks, K = 32 weights, N bytes of a block.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.block_grids import BLOCK, AffineBlockGrid, SymmetricBlockGrid
from tightfit.quant.grids.ggml.blocks import (
    FLOAT16_BYTES,
    half_from_bytes,
    half_to_bytes,
    join_fields,
    pack_nibbles,
    split_fields,
    unpack_nibbles,
)
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread, spread_affine
from tightfit.quant.grids.ggml.weighting import Weighting, square
from tightfit.quant.tensor import Params

NIBBLE_BITS = 4
NIBBLES_BYTES = BLOCK // 2
HIGH_BITS_BYTES = BLOCK // 8

_SEARCH_WEIGHTS = Weighting(mean_factor=1.0, default=square)


def pack_five_bits(codes_BK: Tensor) -> Tensor:
    """uint8 (B, 20): the 32 high bits in the order of the codes, then the low nibbles."""
    high_B481 = (codes_BK >> NIBBLE_BITS).view(-1, HIGH_BITS_BYTES, 8, 1)
    high_B4 = join_fields(high_B481, 1).flatten(1)
    return torch.cat([high_B4, pack_nibbles(codes_BK & 0xF, NIBBLES_BYTES)], dim=1)


def unpack_five_bits(bytes_BN: Tensor) -> Tensor:
    """The inverse of `pack_five_bits`: uint8 (B, 32)."""
    high_B4, low_BN = torch.split(bytes_BN, [HIGH_BITS_BYTES, NIBBLES_BYTES], dim=1)
    high_BK = split_fields(high_B4[:, :, None], 1).flatten(1)
    return unpack_nibbles(low_BN, NIBBLES_BYTES) | (high_BK << NIBBLE_BITS)


class Q4_0(SymmetricBlockGrid):  # noqa: N801 - the type's name
    """d, 16 bytes of nibbles."""

    name = "Q4_0"
    block_bytes = FLOAT16_BYTES + NIBBLES_BYTES
    levels = UniformLevels(first=-8, last=7)
    weighting = _SEARCH_WEIGHTS
    targets = spread(-11, -6, 20) + spread(6, 10, 16)
    reference_level = -8

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(
            [half_to_bytes(params_BP["d"]), pack_nibbles(codes_BK, NIBBLES_BYTES)], dim=1
        )

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, codes_BN = blocks_BN.tensor_split([FLOAT16_BYTES], dim=1)
        return unpack_nibbles(codes_BN, NIBBLES_BYTES), {"d": half_from_bytes(d_B2)}


class Q5_0(SymmetricBlockGrid):  # noqa: N801 - the type's name
    """d, 4 bytes of high bits, 16 bytes of nibbles."""

    name = "Q5_0"
    block_bytes = FLOAT16_BYTES + HIGH_BITS_BYTES + NIBBLES_BYTES
    levels = UniformLevels(first=-16, last=15)
    weighting = _SEARCH_WEIGHTS
    targets = spread(-20, -12, 20) + spread(13, 19, 16)
    reference_level = -16

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([half_to_bytes(params_BP["d"]), pack_five_bits(codes_BK)], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, codes_BN = blocks_BN.tensor_split([FLOAT16_BYTES], dim=1)
        return unpack_five_bits(codes_BN), {"d": half_from_bytes(d_B2)}


class Q4_1(AffineBlockGrid):  # noqa: N801 - the type's name
    """d, m, 16 bytes of nibbles."""

    name = "Q4_1"
    block_bytes = 2 * FLOAT16_BYTES + NIBBLES_BYTES
    levels = UniformLevels(first=0, last=15)
    weighting = _SEARCH_WEIGHTS
    trials = spread_affine((0, -0.7), 15, 2, 11)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        d_B2, m_B2 = half_to_bytes(params_BP["d"]), half_to_bytes(params_BP["m"])
        return torch.cat([d_B2, m_B2, pack_nibbles(codes_BK, NIBBLES_BYTES)], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, m_B2, codes_BN = blocks_BN.tensor_split([2, 4], dim=1)
        return unpack_nibbles(codes_BN, NIBBLES_BYTES), {
            "d": half_from_bytes(d_B2),
            "m": half_from_bytes(m_B2),
        }


class Q5_1(AffineBlockGrid):  # noqa: N801 - the type's name
    """d, m, 4 bytes of high bits, 16 bytes of nibbles."""

    name = "Q5_1"
    block_bytes = 2 * FLOAT16_BYTES + HIGH_BITS_BYTES + NIBBLES_BYTES
    levels = UniformLevels(first=0, last=31)
    weighting = _SEARCH_WEIGHTS
    trials = spread_affine((0, -0.5), 31, 3, 13)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        d_B2, m_B2 = half_to_bytes(params_BP["d"]), half_to_bytes(params_BP["m"])
        return torch.cat([d_B2, m_B2, pack_five_bits(codes_BK)], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, m_B2, codes_BN = blocks_BN.tensor_split([2, 4], dim=1)
        return unpack_five_bits(codes_BN), {"d": half_from_bytes(d_B2), "m": half_from_bytes(m_B2)}


class Q8_0(SymmetricBlockGrid):  # noqa: N801 - the type's name
    """d, 32 signed bytes."""

    name = "Q8_0"
    block_bytes = FLOAT16_BYTES + BLOCK
    levels = UniformLevels(first=-128, last=127)
    weighting = Weighting(mean_factor=None, default=square)
    targets = spread(-143, -103, 19)
    reference_level = -127

    def _fit_blocks(self, x_TJU: Tensor, importance_TJU: Tensor | None) -> Mapping[str, Tensor]:
        """The levels are all but symmetric, so d is kept positive as every ggml writer does."""
        return {"d": super()._fit_blocks(x_TJU, importance_TJU)["d"].abs()}

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        signed_BK = (codes_BK.to(torch.int16) + self.levels.low).to(torch.int8)
        return torch.cat([half_to_bytes(params_BP["d"]), signed_BK.view(torch.uint8)], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, bytes_BK = blocks_BN.tensor_split([FLOAT16_BYTES], dim=1)
        signed_BK = bytes_BK.contiguous().view(torch.int8).to(torch.int16)
        return (signed_BK - self.levels.low).to(torch.uint8), {"d": half_from_bytes(d_B2)}
