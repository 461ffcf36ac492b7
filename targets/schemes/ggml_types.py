"""What a ggml type costs and where it fits.

A row of `width` weights is stored in blocks of `block` weights and `block_bytes` bytes each (GGUF
specification; the numbers come from the `gguf` package), so a tensor takes

    rows * width / block * block_bytes

bytes, and a width that is not a multiple of the block cannot be stored. llama.cpp then takes the
nearest type with a smaller block (`tensor_type_fallback` in llama-quant.cpp).
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from tightfit.errors import QuantizationError

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


def block_weights(ggml_type: Type) -> int:
    """Weights of one block (1 for float types)."""
    return GGML_QUANT_SIZES[ggml_type][0]


def row_bytes(ggml_type: Type, width: int) -> int:
    """Bytes of one row of `width` weights; raises `QuantizationError` if the width has no fit."""
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    if width % block:
        raise QuantizationError(
            f"a row of {width} weights cannot be stored as {ggml_type.name}",
            allowed=f"{ggml_type.name} takes widths that are multiples of {block}",
            hint="choose a type with a smaller block (Q8_0, Q5_0, IQ4_NL: 32; F16: any width)",
        )
    return width // block * block_bytes


def tensor_bytes(ggml_type: Type, shape: Sequence[int]) -> int:
    """Bytes of a tensor's data; `shape` in torch's order, the row width last."""
    return prod(shape[:-1]) * row_bytes(ggml_type, shape[-1])


def stored_bytes(parts: Iterable[tuple[Type, Sequence[int]]], *, alignment: int = 32) -> int:
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
