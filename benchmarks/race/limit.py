"""The least that GPTQ of the race's model can cost: its floating-point operations at GEMM speed.

What nobody can leave out, counted a block, with T tokens, width n of an input and O rows of the
linears that read it (a multiplication and an addition are two operations):

    forward         2 T O n a linear, and causal attention, 2 T L H with L tokens in a sequence
    Hessian         T n^2 a distinct input: its lower triangle alone
    factorization   2/3 n^3 an input: Cholesky (1/3), inverse of its triangle (1/3)
    column loop     O n^2 a linear: each column's error into those that follow it

`FORWARDS` is 2: one for the Hessians, and one more for the states that leave the quantized block.
The rates are measured beside the race, on a square product: in float32 as torch computes it
unasked, and as tightfit does (`calib.precision`).
"""

import statistics
import time
from collections.abc import Iterator
from typing import Final

import torch

from benchmarks.race.subject import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LENGTH_TOKENS
from tightfit.calib.precision import Precision, products_in

FORWARDS: Final = 2
GIGA: Final = 1e9
_SQUARE: Final = 2048
"""Rows and columns: large enough that the product runs at the machine's own speed."""
_PRODUCTS: Final = 5


def inputs() -> Iterator[tuple[int, int]]:
    """Width of each distinct input of a block, and rows of all that read it."""
    kv_rows = HIDDEN // HEADS * KV_HEADS
    yield HIDDEN, HIDDEN + 2 * kv_rows
    yield HIDDEN, HIDDEN
    yield HIDDEN, 2 * INTERMEDIATE
    yield INTERMEDIATE, HIDDEN


def forward_flops(n_sequences: int) -> float:
    """Of one block on all tokens."""
    n_tokens = n_sequences * LENGTH_TOKENS
    linears = sum(2 * n_tokens * rows * width for width, rows in inputs())
    return linears + 2 * n_tokens * LENGTH_TOKENS * HIDDEN


def gptq_flops(n_layers: int, n_sequences: int) -> float:
    """Of GPTQ of the whole model."""
    n_tokens = n_sequences * LENGTH_TOKENS
    solving = sum(
        n_tokens * width**2 + 2 / 3 * width**3 + rows * width**2 for width, rows in inputs()
    )
    return n_layers * (FORWARDS * forward_flops(n_sequences) + solving)


def gemm_flops_per_s(threads: int, precision: Precision) -> float:
    """Of one core while `threads` of them work: operations by CPU second."""
    torch.set_num_threads(threads)
    a_KK, b_KK = torch.randn(2, _SQUARE, _SQUARE)
    rates = []
    with products_in(precision):
        a_KK @ b_KK
        for _ in range(_PRODUCTS):
            start = time.process_time()
            a_KK @ b_KK
            rates.append(2 * _SQUARE**3 / (time.process_time() - start))
    return statistics.median(rates)
