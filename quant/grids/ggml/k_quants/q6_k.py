"""Q6_K: 6-bit codes, sixteen sub-blocks of 16 with 8-bit signed scales, 6.5625 bits a weight.

    w = (d * s_j) * (q - 32)          q in 0..63, s in -128..127

Bytes: 128 of low nibbles (groups of 64 share a byte), 64 of high bit pairs, 16 of scales, d.
Source: ggml-common.h `block_q6_K`.

Shape legend: B blocks, K = 256 weights, J = 16 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import (
    half_from_bytes,
    half_to_bytes,
    pack_nibbles,
    unpack_nibbles,
)
from tightfit.quant.grids.ggml.k_quants.planes import pack_pairs, unpack_pairs
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread
from tightfit.quant.grids.ggml.super_grids import SymmetricSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, square
from tightfit.quant.tensor import Params

NIBBLE_GROUP = 64


class Q6_K(SymmetricSuperGrid):  # noqa: N801 - the type's name
    """6-bit K-quant."""

    name = "Q6_K"
    block_bytes = 210
    sub_block = 16
    levels = UniformLevels(first=-32, last=31)
    largest_scale = 128
    weighting = Weighting(mean_factor=None, default=square)
    targets = spread(-40, -24, 20) + spread(27, 39, 16)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        low_BN = pack_nibbles(codes_BK & 0xF, NIBBLE_GROUP)
        scales_BJ = params_BP["scales"].contiguous().view(torch.uint8)
        d_B2 = half_to_bytes(params_BP["d"])
        return torch.cat([low_BN, pack_pairs(codes_BK >> 4), scales_BJ, d_B2], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        low_BN, high_BN, scales_BJ, d_B2 = torch.split(blocks_BN, [128, 64, 16, 2], dim=1)
        codes_BK = unpack_nibbles(low_BN, NIBBLE_GROUP) | (unpack_pairs(high_BN) << 4)
        scales_BJ = scales_BJ.contiguous().view(torch.int8)
        return codes_BK, {"d": half_from_bytes(d_B2), "scales": scales_BJ}
