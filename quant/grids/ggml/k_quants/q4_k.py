"""Q4_K: 4-bit codes, eight sub-blocks of 32 with 6-bit scale and minimum, 4.5 bits a weight.

    w = (d * s_j) * q - dmin * m_j          q in 0..15, s and m in 0..63

Bytes: d, dmin, 12 of scales and minima, 128 of nibbles.
Source: ggml-common.h `block_q4_K`.

Shape legend: B blocks, K = 256 weights, J = 8 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import pack_nibbles, unpack_nibbles
from tightfit.quant.grids.ggml.k_quants.header import HEADER_BYTES, pack_header, unpack_header
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread_affine
from tightfit.quant.grids.ggml.super_grids import AffineSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, shifted_absolute
from tightfit.quant.tensor import Params

NIBBLE_GROUP = 32


class Q4_K(AffineSuperGrid):  # noqa: N801 - the type's name
    """4-bit K-quant."""

    name = "Q4_K"
    block_bytes = 144
    sub_block = 32
    levels = UniformLevels(first=0, last=15)
    largest_scale = 63
    weighting = Weighting(mean_factor=2.0, default=shifted_absolute)
    trials = spread_affine((0, -0.7), 15, 2, 11)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([pack_header(params_BP), pack_nibbles(codes_BK, NIBBLE_GROUP)], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        header_BN, codes_BN = blocks_BN.tensor_split([HEADER_BYTES], dim=1)
        return unpack_nibbles(codes_BN, NIBBLE_GROUP), unpack_header(header_BN)
