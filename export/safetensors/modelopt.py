"""ModelOpt checkpoints, for TensorRT-LLM and TensorRT Edge-LLM; those of FP8 for vLLM too.

    W4A16_AWQ  weight        uint8 (O / 2, I)   rows 2 r (low half) and 2 r + 1, two's complement
               weight_scale  float16 (O, G)
               pre_quant_scale float16 (I)    what the input is multiplied by: ones
    FP8        weight        F8_E4M3 (O, I)
               weight_scale  float32 ()         a multiplier
               input_scale   float32 ()         of what the linear reads, static

AWQ's scales are folded into the layers before. TensorRT-LLM still loads no W4A16_AWQ linear without
`pre_quant_scale`, but for those that it fuses (of q, k, v and of gate, up), where it reads none.
hf_quant_config.json says which of the two it is; config.json repeats it, as ModelOpt does since
0.29.

Source: NVIDIA ModelOpt 0.47, `torch/export/{quant_utils,convert_hf_config}.py`; TensorRT-LLM,
`_torch/modules/linear.py`, `W4A16_AWQ_LinearMethod`.

Shape legend: O output rows, I input columns, G groups.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tightfit import __version__
from tightfit.errors import QuantizationError
from tightfit.export.safetensors.compressed_tensors import float_linears, has_kv_scales
from tightfit.export.safetensors.pieces import Piece, TensorSpec, module_name
from tightfit.export.weights import QuantizedWeight, Weight
from tightfit.targets.grids import FLOAT8, INTEGERS

CONFIG_NAME = "hf_quant_config.json"
_BITS = 4
_SIGN_BIT = 8
"""What two's complement and codes with a zero point of 8 differ by."""
_GROUP_SIZE = 128
_PRODUCER = {"name": "tightfit", "version": __version__}


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The parts of a linear; raises `QuantizationError` for FP8 without a static input scale."""
    return _float8(name, weight) if weight.grid in FLOAT8 else _int4(name, weight)


def quantization_config(weights: Mapping[str, Weight], grid: str) -> dict[str, Any]:
    """What config.json says."""
    plain = {"dynamic": False, "num_bits": 8, "type": "float"}
    group: dict[str, Any] = {"input_activations": plain, "weights": plain, "targets": ["Linear"]}
    if grid in INTEGERS:
        four = {"dynamic": False, "num_bits": _BITS, "type": "int", "group_size": _GROUP_SIZE}
        group = {"weights": four, "targets": ["Linear"]}
    section = {
        "config_groups": {"group_0": group},
        "ignore": float_linears(weights),
        "quant_algo": _algorithm(grid),
        "producer": _PRODUCER,
        "quant_method": "modelopt",
    }
    return section | ({"kv_cache_scheme": plain} if has_kv_scales(weights) else {})


def hf_quant_config(weights: Mapping[str, Weight], grid: str) -> dict[str, Any]:
    """The file beside it."""
    details: dict[str, Any] = {
        "quant_algo": _algorithm(grid),
        "kv_cache_quant_algo": "FP8" if has_kv_scales(weights) else None,
        "exclude_modules": float_linears(weights),
    }
    if grid in INTEGERS:
        details |= {"group_size": _GROUP_SIZE, "has_zero_point": False, "pre_quant_scale": True}
    return {"producer": _PRODUCER, "quantization": details}


def _algorithm(grid: str) -> str:
    return "W4A16_AWQ" if grid in INTEGERS else "FP8"


def _int4(name: str, weight: QuantizedWeight) -> Piece:
    module, (n_rows, n_columns) = module_name(name), weight.shape
    assert weight.grid == "int4-g128-sym", weight.grid
    if n_rows % 2:
        raise QuantizationError(
            f"{name} has {n_rows} rows, and ModelOpt stores two in a byte",
            allowed="an even number of rows",
            hint="--format compressed-tensors",
        )
    n_groups = n_columns // _GROUP_SIZE
    specs = (
        TensorSpec(name=name, dtype=torch.uint8, shape=(n_rows // 2, n_columns)),
        TensorSpec(name=f"{module}.weight_scale", dtype=torch.float16, shape=(n_rows, n_groups)),
        TensorSpec(name=f"{module}.pre_quant_scale", dtype=torch.float16, shape=(n_columns,)),
    )

    def load() -> list[Tensor]:
        tensor = weight.load()
        nibbles_OI = tensor.codes_OI ^ _SIGN_BIT
        packed = nibbles_OI[::2] | (nibbles_OI[1::2] << _BITS)
        return [packed, tensor.params["scale"], torch.ones(n_columns, dtype=torch.float16)]

    return Piece(specs=specs, load=load)


def _float8(name: str, weight: QuantizedWeight) -> Piece:
    module, input_scale = module_name(name), weight.input_scale
    if input_scale is None:
        raise QuantizationError(
            f"{name} has no static scale of its input, which ModelOpt's FP8 needs",
            allowed="fp8-tensor-static, calibrated",
            hint="leave --calib none out",
        )
    specs = (
        TensorSpec(name=name, dtype=torch.float8_e4m3fn, shape=weight.shape),
        TensorSpec(name=f"{module}.weight_scale", dtype=torch.float32, shape=()),
        TensorSpec(name=f"{module}.input_scale", dtype=torch.float32, shape=()),
    )

    def load() -> list[Tensor]:
        tensor = weight.load()
        return [
            tensor.codes_OI.contiguous().view(torch.float8_e4m3fn),
            tensor.params["scale"].reshape(()),
            torch.tensor(input_scale),
        ]

    return Piece(specs=specs, load=load)
