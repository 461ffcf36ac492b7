"""What a ggml type costs and where it fits.

A row of `width` weights is stored in blocks of `block` weights and `block_bytes` bytes each (GGUF
specification), so a tensor takes

    rows * width / block * block_bytes

bytes, and a width that is not a multiple of the block cannot be stored. llama.cpp then takes the
nearest type with a smaller block (`tensor_type_fallback` in llama-quant.cpp).

The types stand here because the `gguf` package takes a third of a second to import, and a plan
needs no more of it; the tests hold them equal to the package's.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from math import prod

from tightfit.errors import QuantizationError


class GgmlType(IntEnum):
    """The types that tightfit writes, by their numbers in the specification."""

    F32 = 0
    F16 = 1
    BF16 = 30
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23


Type = GgmlType
BLOCKS: Mapping[Type, tuple[int, int]] = {
    Type.F32: (1, 4),
    Type.F16: (1, 2),
    Type.BF16: (1, 2),
    Type.Q4_0: (32, 18),
    Type.Q4_1: (32, 20),
    Type.Q5_0: (32, 22),
    Type.Q5_1: (32, 24),
    Type.Q8_0: (32, 34),
    Type.Q2_K: (256, 84),
    Type.Q3_K: (256, 110),
    Type.Q4_K: (256, 144),
    Type.Q5_K: (256, 176),
    Type.Q6_K: (256, 210),
    Type.IQ4_NL: (32, 18),
    Type.IQ4_XS: (256, 136),
}
"""Weights and bytes of a block."""
GGML_GRIDS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""The types that are grids, by the names of the GGUF specification."""
FALLBACKS: Mapping[Type, Type] = {
    Type.IQ4_XS: Type.IQ4_NL,
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
"""Super-block types (256 weights) to the type of 32-weight blocks that stands in for them."""


def block_weights(ggml_type: IntEnum) -> int:
    """Weights of one block (1 for float types)."""
    return BLOCKS[Type(ggml_type)][0]


def row_bytes(ggml_type: IntEnum, width: int) -> int:
    """Bytes of one row of `width` weights; raises `QuantizationError` if the width has no fit."""
    block, block_bytes = BLOCKS[Type(ggml_type)]
    if width % block:
        raise QuantizationError(
            f"a row of {width} weights cannot be stored as {ggml_type.name}",
            allowed=f"{ggml_type.name} takes widths that are multiples of {block}",
            hint="choose a type with a smaller block (Q8_0, Q5_0, IQ4_NL: 32; F16: any width)",
        )
    return width // block * block_bytes


def tensor_bytes(ggml_type: IntEnum, shape: Sequence[int]) -> int:
    """Bytes of a tensor's data; `shape` in torch's order, the row width last."""
    return prod(shape[:-1]) * row_bytes(ggml_type, shape[-1])


def stored_bytes(parts: Iterable[tuple[IntEnum, Sequence[int]]], *, alignment: int = 32) -> int:
    """Bytes that tensors take in a GGUF file, each padded to the alignment."""
    return sum(-(-tensor_bytes(kind, shape) // alignment) * alignment for kind, shape in parts)


def fitting_type(wanted: Type, width: int) -> Type:
    """`wanted`, or what llama.cpp stores instead when the row width does not divide."""
    if width % block_weights(wanted) == 0:
        return wanted
    if wanted not in FALLBACKS:
        row_bytes(wanted, width)  # raises: nothing stands in for the type
    narrower = FALLBACKS[wanted]
    return narrower if width % block_weights(narrower) == 0 else Type.F16
