"""File names of a TensorRT artifact."""

from collections.abc import Sequence

GOLDEN_NAME = "golden.safetensors"
"""Inputs and expected logits, for the machine that has the card."""
ENGINE_SUFFIX = ".engine"
LOG_SUFFIX = ".build.log"


def sm_name(capability: str) -> str:
    """A compute capability as NVIDIA names it: `8.6` is `sm86`."""
    return "sm" + capability.replace(".", "")


def engine_name(capabilities: Sequence[str]) -> str:
    """Name of an engine for these compute capabilities, e.g. `model.sm86-sm89.engine`."""
    return f"model.{'-'.join(map(sm_name, capabilities))}{ENGINE_SUFFIX}"


def log_name(engine: str) -> str:
    """Name of the verbose log of an engine's build."""
    return engine.removesuffix(ENGINE_SUFFIX) + LOG_SUFFIX
