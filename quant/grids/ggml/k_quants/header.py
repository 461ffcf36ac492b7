"""What Q4_K and Q5_K begin with: d, dmin, and eight 6-bit scales and minima in 12 bytes.

Source: ggml-common.h `block_q4_K`, ggml-quants.c `get_scale_min_k4`.

Shape legend: B blocks, J = 8 sub-blocks, N bytes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightfit.quant.grids.ggml.blocks import FLOAT16_BYTES, half_from_bytes, half_to_bytes
from tightfit.quant.tensor import Params

SIX_BIT_SCALES_BYTES = 12
HEADER_BYTES = 2 * FLOAT16_BYTES + SIX_BIT_SCALES_BYTES


def pack_header(params_BP: Mapping[str, Tensor]) -> Tensor:
    """uint8 (B, 16)."""
    return torch.cat(
        [
            half_to_bytes(params_BP["d"]),
            half_to_bytes(params_BP["dmin"]),
            _pack_six_bit_scales(params_BP["scales"], params_BP["mins"]),
        ],
        dim=1,
    )


def unpack_header(header_BN: Tensor) -> Params:
    """The inverse of `pack_header`."""
    d_B2, dmin_B2, scales_BN = torch.split(
        header_BN, [FLOAT16_BYTES, FLOAT16_BYTES, SIX_BIT_SCALES_BYTES], dim=1
    )
    scales_BJ, mins_BJ = _unpack_six_bit_scales(scales_BN)
    return {
        "d": half_from_bytes(d_B2),
        "dmin": half_from_bytes(dmin_B2),
        "scales": scales_BJ,
        "mins": mins_BJ,
    }


def _pack_six_bit_scales(scales_BJ: Tensor, mins_BJ: Tensor) -> Tensor:
    """uint8 (B, 12): scales and minima 0..3 in six low bits, 4..7 split into nibbles and top bits.

    Byte j < 4: scale j, and the top two bits of scale j + 4. Byte 4 + j: the same of the minima.
    Byte 8 + j: the low nibbles of scale j + 4 and minimum j + 4.
    """
    low_scales, high_scales = scales_BJ[:, :4], scales_BJ[:, 4:]
    low_mins, high_mins = mins_BJ[:, :4], mins_BJ[:, 4:]
    return torch.cat(
        [
            low_scales | (high_scales >> 4 << 6),
            low_mins | (high_mins >> 4 << 6),
            (high_scales & 0xF) | (high_mins << 4),
        ],
        dim=1,
    )


def _unpack_six_bit_scales(bytes_B12: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `_pack_six_bit_scales`: two uint8 (B, 8)."""
    first, second, nibbles = torch.split(bytes_B12, 4, dim=1)
    scales_BJ = torch.cat([first & 0x3F, (nibbles & 0xF) | (first >> 6 << 4)], dim=1)
    mins_BJ = torch.cat([second & 0x3F, (nibbles >> 4) | (second >> 6 << 4)], dim=1)
    return scales_BJ, mins_BJ
