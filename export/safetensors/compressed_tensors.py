"""What config.json says of a compressed-tensors checkpoint."""

from collections.abc import Mapping
from typing import Any

from tightfit.export.safetensors import float8, packed
from tightfit.export.safetensors.pieces import Piece, module_name
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.targets.grids import FLOAT8

HEAD = "lm_head"

KV_SCALES = (".k_scale", ".v_scale")
"""What the names of the scales of an FP8 KV cache end in."""
_KV_CACHE = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "symmetric": True,
    "dynamic": False,
}


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The parts of a linear, by the format of its grid."""
    if weight.grid in FLOAT8:
        return float8.linear(name, weight)
    return packed.linear(name, weight)


def quantization_config(weights: Mapping[str, Weight], grid: str) -> dict[str, Any]:
    """One group for all linears but those that stay floats."""
    is_float8 = grid in FLOAT8
    static = any(
        isinstance(weight, QuantizedWeight) and weight.input_scale is not None
        for weight in weights.values()
    )
    kind = float8 if is_float8 else packed
    group = {
        "targets": ["Linear"],
        "weights": kind.weights_section(grid),
        "input_activations": float8.inputs_section(grid, static=static) if is_float8 else None,
        "output_activations": None,
        "format": kind.FORMAT,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": kind.FORMAT,
        "quantization_status": "compressed",
        "kv_cache_scheme": _KV_CACHE if has_kv_scales(weights) else None,
        "ignore": float_linears(weights),
        "config_groups": {"group_0": group},
    }


def has_kv_scales(weights: Mapping[str, Weight]) -> bool:
    """Whether scales of an FP8 KV cache are among the weights."""
    return any(name.endswith(KV_SCALES) for name in weights)


def float_linears(weights: Mapping[str, Weight]) -> list[str]:
    """Modules whose matrices stay floats: the head, routers, what a plan spares.

    A head that is tied to the embedding is stored nowhere, and a linear all the same.
    """
    floats = [
        module_name(name)
        for name, weight in weights.items()
        if isinstance(weight, FloatWeight) and len(weight.shape) == 2 and "embed" not in name
    ]
    return floats if f"{HEAD}.weight" in weights else [*floats, HEAD]
