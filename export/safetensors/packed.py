"""compressed-tensors checkpoints of integers, format `pack-quantized`.

    weight_packed      int32 (O, I bits / 32)   codes packed along the columns
    weight_scale       float16 (O, G)
    weight_zero_point  int32 (O bits / 32, G)   asymmetric grids only, packed along the rows
    weight_shape       int64 (2)                O, I

Codes and zero points are stored as the unsigned numbers that they are here. Read by transformers
(through compressed-tensors) and vLLM. Versions of compressed-tensors from 0.20 do not read
`weight_g_idx`, so an act-order is not written.

Source: compressed-tensors, `compressors/pack_quantized`.

Shape legend: O output rows, I input columns, G groups.
"""

from typing import Any

import torch
from torch import Tensor

from tightfit.export.safetensors.pieces import Piece, TensorSpec, module_name
from tightfit.export.safetensors.words import n_words, pack_words
from tightfit.export.weights import QuantizedWeight
from tightfit.targets.grids import INTEGERS, PER_CHANNEL

FORMAT = "pack-quantized"


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The parts of a linear; raises `QuantizationError` for a shape that words do not fill."""
    facts, (n_rows, n_columns) = INTEGERS[weight.grid], weight.shape
    module, n_groups = module_name(name), facts.n_groups(n_columns)

    def spec(part: str, dtype: torch.dtype, *shape: int) -> TensorSpec:
        return TensorSpec(name=f"{module}.{part}", dtype=dtype, shape=shape)

    specs = [
        spec("weight_packed", torch.int32, n_rows, n_words(name, n_columns, facts.bits)),
        spec("weight_scale", torch.float16, n_rows, n_groups),
        spec("weight_shape", torch.int64, 2),
    ]
    if not facts.symmetric:
        zeros = spec("weight_zero_point", torch.int32, n_words(name, n_rows, facts.bits), n_groups)
        specs.append(zeros)
    return Piece(specs=tuple(specs), load=lambda: _parts(weight))


def weights_section(grid: str) -> dict[str, Any]:
    """How `config_groups` describes the weights."""
    facts = INTEGERS[grid]
    per_channel = facts.group_size == PER_CHANNEL
    return {
        "num_bits": facts.bits,
        "type": "int",
        "symmetric": facts.symmetric,
        "strategy": "channel" if per_channel else "group",
        "group_size": None if per_channel else facts.group_size,
        "dynamic": False,
        "actorder": None,
    }


def _parts(weight: QuantizedWeight) -> list[Tensor]:
    bits, tensor = INTEGERS[weight.grid].bits, weight.load()
    parts = [
        pack_words(tensor.codes_OI.T, bits).T,
        tensor.params["scale"],
        torch.tensor(weight.shape, dtype=torch.int64),
    ]
    if "zero" in tensor.params:
        parts.append(pack_words(tensor.params["zero"], bits))
    return parts
