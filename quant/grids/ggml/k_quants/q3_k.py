"""Q3_K: 3-bit codes, sixteen sub-blocks of 16 with 6-bit signed scales, 3.4375 bits a weight.

    w = (d * s_j) * (q - 4)          q in 0..7, s in -32..31

Bytes: 32 of high bits, 64 of the low two bits, 12 of scales (low nibbles of j and j + 8 in byte j,
top bits of j, j + 4, j + 8, j + 12 ... in byte 8 + j % 4, stored plus 32), d.
Source: ggml-common.h `block_q3_K`.

Shape legend: B blocks, K = 256 weights, J = 16 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import (
    half_from_bytes,
    half_to_bytes,
    join_fields,
    split_fields,
)
from tightfit.quant.grids.ggml.k_quants.planes import (
    pack_bits,
    pack_pairs,
    unpack_bits,
    unpack_pairs,
)
from tightfit.quant.grids.ggml.levels import UniformLevels
from tightfit.quant.grids.ggml.search import spread
from tightfit.quant.grids.ggml.super_grids import SymmetricSuperGrid
from tightfit.quant.grids.ggml.weighting import Weighting, square
from tightfit.quant.tensor import Params


class Q3_K(SymmetricSuperGrid):  # noqa: N801 - the type's name
    """3-bit K-quant."""

    name = "Q3_K"
    block_bytes = 110
    sub_block = 16
    levels = UniformLevels(first=-4, last=3)
    largest_scale = 32
    weighting = Weighting(mean_factor=2.0, default=square)
    targets = spread(-6, -3, 20) + spread(2.5, 5, 16)

    def _pack_blocks(self, codes_BK: Tensor, params_BP: Mapping[str, Tensor]) -> Tensor:
        biased_BJ = (params_BP["scales"] + self.largest_scale).to(torch.uint8)
        low_B8 = join_fields((biased_BJ & 0xF).view(-1, 2, 8), 4)
        high_B4 = join_fields((biased_BJ >> 4).view(-1, 4, 4), 2)
        return torch.cat(
            [
                pack_bits(codes_BK >> 2),
                pack_pairs(codes_BK & 0b11),
                low_B8,
                high_B4,
                half_to_bytes(params_BP["d"]),
            ],
            dim=1,
        )

    def _unpack_blocks(self, blocks_BN: Tensor) -> tuple[Tensor, Params]:
        top_BN, pairs_BN, low_B8, high_B4, d_B2 = torch.split(blocks_BN, [32, 64, 8, 4, 2], dim=1)
        low_BJ, high_BJ = split_fields(low_B8, 4).flatten(1), split_fields(high_B4, 2).flatten(1)
        biased_BJ = (low_BJ | (high_BJ << 4)).to(torch.int8)
        codes_BK = unpack_pairs(pairs_BN) | (unpack_bits(top_BN) << 2)
        return codes_BK, {"d": half_from_bytes(d_B2), "scales": biased_BJ - self.largest_scale}
