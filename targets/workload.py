"""What a model will be run with on a target: the part of a plan that is not the model's."""

from dataclasses import dataclass
from enum import StrEnum


class CacheType(StrEnum):
    """What keys and values are stored as."""

    F16 = "f16"
    Q8_0 = "q8_0"
    """ggml's: 34 bytes for 32 numbers."""
    FP8 = "fp8"
    """E4M3 with a scale for the whole tensor: one byte a number."""


class Split(StrEnum):
    """How several devices share a model."""

    LAYER = "layer"
    """Whole layers, one device after the other (llama.cpp's default)."""
    TENSOR = "tensor"
    """A slice of every matrix each, all devices at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """How the model is used."""

    context_tokens: int
    """Of one sequence."""
    n_sequences: int = 1
    """Sequences at once, each with a context of its own."""
    cache_type: CacheType = CacheType.F16
    split: Split = Split.LAYER
