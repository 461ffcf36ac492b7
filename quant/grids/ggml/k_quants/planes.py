"""Bit planes of the K-quants' codes: which weights share a byte.

Shape legend: B blocks, K = 256 weights, N bytes.
"""

from torch import Tensor

from tightfit.quant.grids.ggml.blocks import join_fields, split_fields

GROUP = 32
"""Weights of neighbouring groups of 32 share bytes."""


def pack_bits(bits_BK: Tensor) -> Tensor:
    """uint8 (B, 32): bit g of byte n is weight n of group g."""
    return join_fields(bits_BK.view(-1, 8, GROUP), 1)


def unpack_bits(bytes_BN: Tensor) -> Tensor:
    """The inverse of `pack_bits`."""
    return split_fields(bytes_BN, 1).flatten(1)


def pack_pairs(pairs_BK: Tensor) -> Tensor:
    """uint8 (B, 64) of 2-bit fields: each half of the block in 32 bytes, four groups in a byte."""
    return join_fields(pairs_BK.view(-1, 2, 4, GROUP), 2).flatten(1)


def unpack_pairs(bytes_BN: Tensor) -> Tensor:
    """The inverse of `pack_pairs`."""
    return split_fields(bytes_BN.reshape(-1, 2, GROUP), 2).flatten(1)
