"""Q2_K: 2-bit codes, sixteen sub-blocks of 16 with 4-bit scale and minimum, 2.625 bits a weight.

    w = (d * s_j) * q - dmin * m_j          q in 0..3, s and m in 0..15

Bytes: 16 of scale (low) and minimum (high nibble), 64 of codes, d, dmin.
Source: ggml-common.h `block_q2_K`.

Shape legend: B blocks, K = 256 weights, J = 16 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import half_from_bytes, half_to_bytes
from tightfit.quant.grids.ggml.k_quants.planes import pack_pairs, unpack_pairs
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread_affine
from tightfit.quant.grids.ggml.super_grids import AffineSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, absolute
from tightfit.quant.tensor import Params

SCALE_BITS = 4


class Q2_K(AffineSuperGrid):  # noqa: N801 - the type's name
    """2-bit K-quant."""

    name = "Q2_K"
    block_bytes = 84
    sub_block = 16
    levels = UniformLevels(first=0, last=3)
    largest_scale = 15
    weighting = Weighting(mean_factor=1.0, default=absolute)
    trials = spread_affine((0, -0.25, -0.5), 3, 0.7, 7)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        scales_BJ = params_BP["scales"] | (params_BP["mins"] << SCALE_BITS)
        d_B2, dmin_B2 = half_to_bytes(params_BP["d"]), half_to_bytes(params_BP["dmin"])
        return torch.cat([scales_BJ, pack_pairs(codes_BK), d_B2, dmin_B2], dim=1)

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        scales_BJ, codes_BN, d_B2, dmin_B2 = torch.split(blocks_BN, [16, 64, 2, 2], dim=1)
        return unpack_pairs(codes_BN), {
            "d": half_from_bytes(d_B2),
            "dmin": half_from_bytes(dmin_B2),
            "scales": scales_BJ & 0xF,
            "mins": scales_BJ >> SCALE_BITS,
        }
