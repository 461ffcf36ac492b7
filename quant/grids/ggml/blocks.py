"""Bit fields and float16 values inside ggml blocks: `pack` and `unpack` side by side.

Every ggml block stores its codes as bit planes: field f of byte n belongs to another group of
weights than field f + 1. So packing is a reshape to (..., F, N), F = 8 / bits fields of N bytes,
and one join along F.

Shape legend: B blocks, F fields in a byte, N bytes, J sub-blocks.
"""

import torch
from torch import Tensor

BYTE_BITS = 8
FLOAT16_BYTES = 2

SIX_BIT_SCALES_BYTES = 12
"""Eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K."""


def join_fields(fields_FN: Tensor, bits: int) -> Tensor:
    """uint8 (..., N) out of uint8 fields (..., F, N), the first field in the lowest bits."""
    joined = torch.zeros_like(fields_FN[..., 0, :])
    for f in range(BYTE_BITS // bits):
        joined |= fields_FN[..., f, :] << (bits * f)
    return joined


def split_fields(bytes_N: Tensor, bits: int) -> Tensor:
    """The inverse of `join_fields`: uint8 (..., F, N)."""
    mask = (1 << bits) - 1
    return torch.stack([(bytes_N >> (bits * f)) & mask for f in range(BYTE_BITS // bits)], dim=-2)


def pack_nibbles(nibbles_BK: Tensor, group: int) -> Tensor:
    """uint8 (B, K / 2): each two neighbouring groups share `group` bytes, the first one low."""
    return join_fields(nibbles_BK.view(len(nibbles_BK), -1, 2, group), 4).flatten(1)


def unpack_nibbles(bytes_BN: Tensor, group: int) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 (B, K)."""
    return split_fields(bytes_BN.reshape(len(bytes_BN), -1, group), 4).flatten(1)


def half_to_bytes(values_B: Tensor) -> Tensor:
    """uint8 (B, 2) of float16 (B, 1), little-endian."""
    return values_B.contiguous().view(torch.uint8)


def half_from_bytes(bytes_B2: Tensor) -> Tensor:
    """float16 (B, 1) of uint8 (B, 2)."""
    return bytes_B2.clone(memory_format=torch.contiguous_format).view(torch.float16)


def pack_six_bit_scales(scales_BJ: Tensor, mins_BJ: Tensor) -> Tensor:
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


def unpack_six_bit_scales(bytes_B12: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_six_bit_scales`: two uint8 (B, 8)."""
    first, second, nibbles = torch.split(bytes_B12, 4, dim=1)
    scales_BJ = torch.cat([first & 0x3F, (nibbles & 0xF) | (first >> 6 << 4)], dim=1)
    mins_BJ = torch.cat([second & 0x3F, (nibbles >> 4) | (second >> 6 << 4)], dim=1)
    return scales_BJ, mins_BJ
