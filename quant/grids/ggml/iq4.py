"""IQ4_NL and IQ4_XS: four bits on a codebook of 16 unevenly spaced levels.

    IQ4_NL:  w = d * level              blocks of 32
    IQ4_XS:  w = (d * s_j) * level      super-blocks of 256, eight sub-blocks of 32, s in -32..31

Source: ggml-common.h (layouts and codebook), ggml-quants.c (`quantize_row_iq4_nl_impl`).

Shape legend: B blocks, K weights and N bytes of a block.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.block_grids import BLOCK, SymmetricBlockGrid
from tightfit.quant.grids.ggml.blocks import (
    FLOAT16_BYTES,
    half_from_bytes,
    half_to_bytes,
    join_fields,
    pack_nibbles,
    split_fields,
    unpack_nibbles,
)
from tightfit.quant.grids.ggml.levels import CodebookLevels
from tightfit.quant.grids.ggml.search import spread
from tightfit.quant.grids.ggml.super_grids import SUPER_BLOCK, SymmetricSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, square
from tightfit.quant.tensor import Params

CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
NIBBLE_BITS = 4
NIBBLES_BYTES = BLOCK // 2
SCALES_HIGH_BYTES = 2
SCALES_LOW_BYTES = 4

_LEVELS = CodebookLevels(values=CODEBOOK)
_SEARCH_WEIGHTS = Weighting(mean_factor=2.0, default=square)
_TARGETS = spread(-167, -107, 9) + spread(103, 148, 7)


class IQ4_NL(SymmetricBlockGrid):  # noqa: N801 - the type's name
    """d, 16 bytes of nibbles."""

    name = "IQ4_NL"
    block_bytes = FLOAT16_BYTES + NIBBLES_BYTES
    levels = _LEVELS
    weighting = _SEARCH_WEIGHTS
    targets = _TARGETS

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(
            [half_to_bytes(params_BP["d"]), pack_nibbles(codes_BK, NIBBLES_BYTES)], dim=1
        )

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, codes_BN = blocks_BN.tensor_split([FLOAT16_BYTES], dim=1)
        return unpack_nibbles(codes_BN, NIBBLES_BYTES), {"d": half_from_bytes(d_B2)}


class IQ4_XS(SymmetricSuperGrid):  # noqa: N801 - the type's name
    """d, two high bits of each scale, their low nibbles, 128 bytes of nibbles."""

    name = "IQ4_XS"
    block_bytes = FLOAT16_BYTES + SCALES_HIGH_BYTES + SCALES_LOW_BYTES + SUPER_BLOCK // 2
    sub_block = BLOCK
    levels = _LEVELS
    largest_scale = 32
    weighting = _SEARCH_WEIGHTS
    targets = _TARGETS

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        biased_BJ = (params_BP["scales"] + self.largest_scale).to(torch.uint8)
        high_BN = join_fields((biased_BJ >> NIBBLE_BITS).view(-1, SCALES_HIGH_BYTES, 4, 1), 2)
        low_BN = join_fields((biased_BJ & 0xF).view(-1, SCALES_LOW_BYTES, 2, 1), NIBBLE_BITS)
        d_B2 = half_to_bytes(params_BP["d"])
        return torch.cat(
            [d_B2, high_BN.flatten(1), low_BN.flatten(1), pack_nibbles(codes_BK, NIBBLES_BYTES)], 1
        )

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        d_B2, high_BN, low_BN, codes_BN = blocks_BN.tensor_split([2, 4, 8], dim=1)
        high_BJ = split_fields(high_BN[:, :, None], 2).flatten(1)
        low_BJ = split_fields(low_BN[:, :, None], NIBBLE_BITS).flatten(1)
        biased_BJ = (low_BJ | (high_BJ << NIBBLE_BITS)).to(torch.int8)
        params = {"d": half_from_bytes(d_B2), "scales": biased_BJ - self.largest_scale}
        return unpack_nibbles(codes_BN, NIBBLES_BYTES), params
