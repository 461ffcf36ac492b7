"""Precision of a calibration's products: of the passes through the blocks, and of the Hessians.

They are torch's own ("torch.set_float32_matmul_precision"): how far the factors of a product of
float32 matrices may be rounded where the device is faster then. Sums are float32. GPUs since Ampere
have TF32, CPUs with AMX bfloat16. Those with AVX-512 alone round nothing: there `medium` are the
float32 products of oneDNN, which on AMD's take half the time of MKL's (`docs/performance.md`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch


class Precision(StrEnum):
    """Least precision of factors that is allowed."""

    HIGHEST = "highest"
    """float32."""
    HIGH = "high"
    """TF32, 10 bits behind the point."""
    MEDIUM = "medium"
    """bfloat16, 7 bits behind the point, in which R1 and its distills are served; on GPUs TF32."""


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Allow this precision in the whole process for as long as the context lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision.value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
