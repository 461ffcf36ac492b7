"""The families that tightfit knows, by `model_type`.

What an architecture says stands in `family`; the tables are `dense_families` and `deepseek_v3`.
"""

from collections.abc import Mapping

from tightfit.calib.deepseek_v3 import DEEPSEEK_V3
from tightfit.calib.dense_families import LLAMA, QWEN2, QWEN3
from tightfit.calib.family import Architecture, BlockKind, FoldKind, Input
from tightfit.errors import CheckpointError

__all__ = [
    "ARCHITECTURES",
    "DEEPSEEK_V3",
    "LLAMA",
    "QWEN2",
    "QWEN3",
    "Architecture",
    "BlockKind",
    "FoldKind",
    "Input",
    "architecture_of",
]

ARCHITECTURES: Mapping[str, Architecture] = {
    family.model_type: family for family in (QWEN2, QWEN3, LLAMA, DEEPSEEK_V3)
}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a `model_type`; raises `CheckpointError` for an unknown one."""
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"model_type {model_type!r} is not a family that tightfit knows",
            allowed="families: " + ", ".join(ARCHITECTURES),
            hint="tightfit is for DeepSeek-R1 and its distilled checkpoints: see `tightfit models`",
        )
    return ARCHITECTURES[model_type]
