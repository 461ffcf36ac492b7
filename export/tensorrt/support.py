"""Which weight types TensorRT for RTX takes on which card: our own table, asked before any build.

A build takes minutes and gigabytes and names no alternative when it fails. The table is NVIDIA's
support matrix (TensorRT for RTX 1.7, "Hardware and Precision") as far as it goes; SM 80 is not in
it, but builds, and is therefore experimental. A test holds the table against TensorRT itself.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tightfit.errors import UsageError

CARDS: Mapping[str, str] = MappingProxyType(
    {
        "8.0": "A100 (experimental)",
        "8.6": "RTX 30",
        "8.9": "RTX 40",
        "12.0": "RTX 50",
    }
)
"""Compute capabilities that engines are built for, and what has them."""
EXPERIMENTAL = frozenset({"8.0"})
"""Capabilities that build, but that NVIDIA's support matrix does not list."""
WEIGHT_TYPES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "float16": frozenset(CARDS),
        "int8": frozenset(CARDS),
        "int4": frozenset(CARDS),
        "fp8": frozenset({"8.9", "12.0"}),
        # No grid is stored in it yet.
        "fp4": frozenset({"12.0"}),
    }
)
"""Weight type to the compute capabilities that it is built for."""
GRID_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "F16": "float16",
        "BF16": "float16",
        "F32": "float16",
        "int4-g64-sym": "int4",
        "int4-g128-sym": "int4",
        "int8-channel-sym": "int8",
        "fp8-e4m3-tensor": "fp8",
        "fp8-e4m3-channel": "fp8",
    }
)
"""Grid to the type that TensorRT stores it in; blocks of INT4 are 64 or 128 and symmetric."""
_OTHER_RUNTIMES = "for this target choose --format gguf or onnx"


def is_experimental(capability: str) -> bool:
    """Whether NVIDIA's support matrix leaves this compute capability out."""
    return capability in EXPERIMENTAL


def grids_for(capability: str) -> tuple[str, ...]:
    """Grids that an engine for this compute capability can hold."""
    return tuple(
        grid for grid, weight_type in GRID_TYPES.items() if capability in WEIGHT_TYPES[weight_type]
    )


def check_support(capability: str | None, grids: Iterable[str], *, model_type: str = "") -> None:
    """Raise `UsageError` when no engine can be built, with the reason and the alternatives.

    `capability` is the target's, e.g. `8.6`; None stands for a target without an NVIDIA card.
    `grids` are the names of all grids of the plan; `model_type` is config.json's.
    """
    if capability is None:
        raise UsageError(
            "TensorRT engines run on NVIDIA cards only, and this target has none",
            allowed=f"targets with a card: {_cards(CARDS)}",
            hint=_OTHER_RUNTIMES,
        )
    if capability not in CARDS:
        raise UsageError(
            f"no TensorRT engine is built for compute capability {capability}",
            allowed=f"compute capabilities: {_cards(CARDS)}",
            hint=_OTHER_RUNTIMES,
        )
    if model_type == "deepseek_v3":
        raise UsageError(
            "no TensorRT engine is built of a DeepSeek-V3: without a mixture-of-experts operator "
            "it would compute all experts for every token",
            allowed="TensorRT engines: Qwen2, Qwen3 and Llama models (all R1 distills)",
            hint="choose --format gguf, or export the Hugging Face folder for TensorRT-LLM",
        )
    for grid in grids:
        _check_grid(capability, grid)


def _check_grid(capability: str, grid: str) -> None:
    usable = ", ".join(grids_for(capability))
    if grid not in GRID_TYPES:
        raise UsageError(
            f"TensorRT cannot hold the grid {grid} exactly: {_reason(grid)}",
            allowed=f"grids for compute capability {capability}: {usable}",
            hint="choose such a scheme, e.g. --scheme gptq-int4-g128, or --format gguf",
        )
    weight_type = GRID_TYPES[grid]
    able = [card for card in CARDS if card in WEIGHT_TYPES[weight_type]]
    if capability not in able:
        raise UsageError(
            f"TensorRT has no {weight_type} ({grid}) on compute capability {capability} "
            f"({CARDS[capability]})",
            allowed=f"{weight_type} runs on: {_cards(able)}",
            hint=f"choose another grid ({usable}), e.g. --scheme gptq-int4-g128, or a target with "
            "such a card",
        )


def _reason(grid: str) -> str:
    if grid.endswith("-asym"):
        return "its weights are symmetric, without zero points"
    if grid.startswith("int4"):
        return "its INT4 blocks are 64 or 128 columns wide"
    if grid.startswith("int"):
        return "its integer weights have 4 bits, or 8 with one scale per row"
    if grid.startswith("fp8"):
        return "its FP8 weights have one scale per tensor or per row"
    return "it has no such type"


def _cards(capabilities: Iterable[str]) -> str:
    return ", ".join(f"{capability} ({CARDS[capability]})" for capability in capabilities)
