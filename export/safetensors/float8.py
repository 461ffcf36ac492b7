"""compressed-tensors checkpoints of FP8, format `float-quantized`.

    weight        F8_E4M3 (O, I)
    weight_scale  float32 (1) per tensor, (O, 1) per row, (R, C) per block; a multiplier
    input_scale   float32 (1)    static activations only

Activations are FP8 too: with a static scale where the weights carry one, else with scales that the
runtime finds, one per token (in groups of 128 channels beside blocks).

Source: compressed-tensors, `compressors/naive_quantized` and `quantization/quant_args`; vLLM,
`compressed_tensors_w8a8_fp8`.

Shape legend: O output rows, I input columns, R, C row and column blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tightfit.export.safetensors.pieces import Piece, TensorSpec, module_name
from tightfit.export.weights import QuantizedWeight

FORMAT = "float-quantized"
BLOCK = 128
_STRATEGIES = {
    "fp8-e4m3-tensor": "tensor",
    "fp8-e4m3-channel": "channel",
    "fp8-e4m3-block128": "block",
}


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The parts of a linear."""
    module, (n_rows, n_columns) = module_name(name), weight.shape
    shapes = {
        "tensor": (1,),
        "channel": (n_rows, 1),
        "block": (math.ceil(n_rows / BLOCK), math.ceil(n_columns / BLOCK)),
    }
    scale_shape = shapes[_STRATEGIES[weight.grid]]
    specs = [
        TensorSpec(name=name, dtype=torch.float8_e4m3fn, shape=weight.shape),
        TensorSpec(name=f"{module}.weight_scale", dtype=torch.float32, shape=scale_shape),
    ]
    if weight.input_scale is not None:
        specs.append(TensorSpec(name=f"{module}.input_scale", dtype=torch.float32, shape=(1,)))

    def load() -> list[Tensor]:
        tensor = weight.load()
        parts = [
            tensor.codes_OI.contiguous().view(torch.float8_e4m3fn),
            tensor.params["scale"].reshape(scale_shape),
        ]
        if weight.input_scale is not None:
            parts.append(torch.tensor([weight.input_scale]))
        return parts

    return Piece(specs=tuple(specs), load=load)


def weights_section(grid: str) -> dict[str, Any]:
    """How `config_groups` describes the weights."""
    strategy = _STRATEGIES[grid]
    section = {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "strategy": strategy,
        "dynamic": False,
    }
    return section | ({"block_structure": [BLOCK, BLOCK]} if strategy == "block" else {})


def inputs_section(grid: str, *, static: bool) -> dict[str, Any]:
    """How it describes what the linears read."""
    section = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": not static}
    if static:
        return section | {"strategy": "tensor"}
    if _STRATEGIES[grid] == "block":
        return section | {"strategy": "group", "group_size": BLOCK}
    return section | {"strategy": "token"}
