"""Codes out of machine words: a continuous little-endian stream of bits, lowest bits first.

A run of codes ends at a byte: one byte of 2, 4 or 8 bits a code, three bytes of eight codes of 3.
Runs of three bytes may straddle two words.

Shape legend: R rows, W words, B bytes, E runs, K codes of a run, N codes of a row.
"""

import math
import sys

import torch
from torch import Tensor

WORD_BITS = 32
_BYTE_BITS = 8


def unpack_words(words_RW: Tensor, bits: int) -> Tensor:
    """uint8 (R, N) of int32 words (R, W), N = 32 W / bits."""
    assert sys.byteorder == "little", "as safetensors' own readers demand"
    bytes_RB = words_RW.contiguous().view(torch.uint8)
    run_bytes = math.lcm(bits, _BYTE_BITS) // _BYTE_BITS
    run_RE = bytes_RB
    if run_bytes > 1:
        run_RE = torch.zeros(len(bytes_RB), bytes_RB.shape[1] // run_bytes, dtype=torch.int32)
        for place in range(run_bytes):
            run_RE |= bytes_RB[:, place::run_bytes].to(torch.int32) << (_BYTE_BITS * place)
    n_codes = run_bytes * _BYTE_BITS // bits
    codes_REK = torch.empty(*run_RE.shape, n_codes, dtype=torch.uint8)
    for place in range(n_codes):
        codes_REK[:, :, place] = (run_RE >> (bits * place)) & ((1 << bits) - 1)
    return codes_REK.flatten(1)
