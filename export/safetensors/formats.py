"""The checkpoint formats: how each stores a model's weights, and what its configs say."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tightfit.calib.config import CONFIG_NAME
from tightfit.errors import UsageError
from tightfit.export.safetensors import awq, compressed_tensors, gptq, modelopt
from tightfit.export.safetensors.pieces import Piece, float_piece
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.targets.formats import check_storable

_MODULES: Mapping[str, ModuleType] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
}
GPTQ_CONFIG_NAME = "quantize_config.json"


def checkpoint_pieces(format_name: str, weights: Mapping[str, Weight]) -> list[Piece]:
    """What the files hold, in the order of the weights, which are by stored name.

    Raises `UsageError` and `QuantizationError` for what the format cannot hold.
    """
    grid = common_grid(weights)
    check_storable(format_name, grid)
    _check_order(format_name, weights)
    return [
        float_piece(_stored_name(format_name, name), weight)
        if isinstance(weight, FloatWeight)
        else _MODULES[format_name].linear(name, weight)
        for name, weight in weights.items()
    ]


def checkpoint_configs(format_name: str, weights: Mapping[str, Weight]) -> dict[str, Any]:
    """By file name; of config.json the section `quantization_config`."""
    grid = common_grid(weights)
    section = _MODULES[format_name].quantization_config(weights, grid)
    configs = {CONFIG_NAME: section}
    if format_name == "gptq":
        configs[GPTQ_CONFIG_NAME] = section
    if format_name == "modelopt":
        configs[modelopt.CONFIG_NAME] = modelopt.hf_quant_config(weights, grid)
    return configs


def common_grid(weights: Mapping[str, Weight]) -> str:
    """The one grid of all quantized matrices."""
    grids = {weight.grid for weight in weights.values() if isinstance(weight, QuantizedWeight)}
    assert len(grids) == 1, grids
    return next(iter(grids))


def _check_order(format_name: str, weights: Mapping[str, Weight]) -> None:
    if format_name != "gptq" and gptq.has_act_order(weights):
        raise UsageError(
            f"an act-order cannot be stored as {format_name}",
            allowed="--format gptq stores it",
            hint="--order static has the lower error, and every format holds it",
        )


def _stored_name(format_name: str, name: str) -> str:
    """ModelOpt names the scales of the KV cache by the layers that fill it."""
    if format_name != "modelopt":
        return name
    return name.replace(".k_scale", ".k_proj.k_scale").replace(".v_scale", ".v_proj.v_scale")
