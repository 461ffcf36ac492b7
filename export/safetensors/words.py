"""Codes in 32-bit words, the first in the lowest bits; 3-bit codes run across word borders.

Shape legend: N codes of a column, X columns, W words.
"""

import math

import torch
from torch import Tensor

from tightfit.errors import QuantizationError

WORD_BITS = 32


def n_words(name: str, n_codes: int, bits: int) -> int:
    """Words of that many codes; raises `QuantizationError` when the last would not be full.

    Readers of these formats take full words for granted.
    """
    cycle = cycle_codes(bits)
    if n_codes % cycle:
        raise QuantizationError(
            f"{name}: {n_codes} codes of {bits} bits do not fill 32-bit words",
            allowed=f"rows and columns in multiples of {cycle}",
            hint="--format gguf and onnx hold such a matrix",
        )
    return n_codes * bits // WORD_BITS


def cycle_codes(bits: int) -> int:
    """Codes after which a code begins with a word again: 8 of 4 bits, 32 of 3."""
    return WORD_BITS // math.gcd(WORD_BITS, bits)


def pack_words(codes_NX: Tensor, bits: int) -> Tensor:
    """int32 (W, X) of uint8 codes (N, X), packed along the first dimension."""
    n_codes, n_columns = codes_NX.shape
    cycle = cycle_codes(bits)
    codes_CKX = codes_NX.reshape(-1, cycle, n_columns).to(torch.int64)
    words_CWX = codes_CKX.new_zeros(len(codes_CKX), cycle * bits // WORD_BITS, n_columns)
    for k in range(cycle):
        word, offset = divmod(k * bits, WORD_BITS)
        words_CWX[:, word] |= codes_CKX[:, k] << offset
        if offset + bits > WORD_BITS:
            words_CWX[:, word + 1] |= codes_CKX[:, k] >> (WORD_BITS - offset)
    assert n_codes == len(codes_CKX) * cycle
    low = words_CWX.flatten(0, 1) & 0xFFFFFFFF
    # int64 to int32 keeps the low bits, whatever the sign.
    return low.to(torch.int32)
