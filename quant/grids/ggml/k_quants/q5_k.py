"""Q5_K: 5-bit codes, eight sub-blocks of 32 with 6-bit scale and minimum, 5.5 bits a weight.

    w = (d * s_j) * q - dmin * m_j          q in 0..31, s and m in 0..63

Bytes: d, dmin, 12 of scales and minima, 32 of high bits, 128 of nibbles.
Source: ggml-common.h `block_q5_K`.

Shape legend: B blocks, K = 256 weights, J = 8 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import pack_nibbles, unpack_nibbles
from tightfit.quant.grids.ggml.k_quants.header import HEADER_BYTES, pack_header, unpack_header
from tightfit.quant.grids.ggml.k_quants.planes import pack_bits, unpack_bits
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread_affine
from tightfit.quant.grids.ggml.super_grids import AffineSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, shifted_absolute
from tightfit.quant.tensor import Params

NIBBLE_GROUP = 32


class Q5_K(AffineSuperGrid):  # noqa: N801 - the type's name
    """5-bit K-quant."""

    name = "Q5_K"
    block_bytes = 176
    sub_block = 32
    levels = UniformLevels(first=0, last=31)
    largest_scale = 63
    weighting = Weighting(mean_factor=2.0, default=shifted_absolute)
    trials = spread_affine((0, -0.5), 31, 3, 13)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        high_BN, low_BN = pack_bits(codes_BK >> 4), pack_nibbles(codes_BK & 0xF, NIBBLE_GROUP)
        return torch.cat([pack_header(params_BP), high_BN, low_BN], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        header_BN, high_BN, low_BN = torch.split(blocks_BN, [HEADER_BYTES, 32, 128], dim=1)
        codes_BK = unpack_nibbles(low_BN, NIBBLE_GROUP) | (unpack_bits(high_BN) << 4)
        return codes_BK, unpack_header(header_BN)
