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
