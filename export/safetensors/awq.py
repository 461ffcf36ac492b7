"""AWQ checkpoints in AutoAWQ's GEMM layout: four bits, eight rows of the weight in a word.

    qweight int32 (I, O / 8)    rows 8 w + (0, 2, 4, 6, 1, 3, 5, 7) from the lowest bits up
    qzeros  int32 (G, O / 8)    in the same order
    scales  float16 (G, O)

Read by transformers (through gptqmodel), vLLM, TensorRT-LLM. Every group has a zero point here; a
symmetric grid's is 8.

Source: AutoAWQ, `WQLinear_GEMM.from_linear`.

Shape legend: O output rows, I input columns, G groups.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tightfit.export.safetensors.pieces import Piece, TensorSpec, module_name
from tightfit.export.safetensors.words import n_words, pack_words
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.targets.grids import INTEGERS

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Row of a word's eight by place, from the lowest bits up: how the CUDA kernel unpacks halves."""


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The three parts of a linear; raises `QuantizationError` for rows that words do not fill."""
    facts, (n_rows, n_columns) = INTEGERS[weight.grid], weight.shape
    module, n_groups = module_name(name), facts.n_groups(n_columns)
    words = n_words(name, n_rows, BITS)
    specs = (
        TensorSpec(name=f"{module}.qweight", dtype=torch.int32, shape=(n_columns, words)),
        TensorSpec(name=f"{module}.qzeros", dtype=torch.int32, shape=(n_groups, words)),
        TensorSpec(name=f"{module}.scales", dtype=torch.float16, shape=(n_groups, n_rows)),
    )
    return Piece(specs=specs, load=lambda: _parts(weight))


def quantization_config(weights: Mapping[str, Weight], grid: str) -> dict[str, Any]:
    """What config.json says."""
    floats = [
        module_name(name)
        for name, weight in weights.items()
        if isinstance(weight, FloatWeight) and len(weight.shape) == 2 and "embed" not in name
    ]
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": INTEGERS[grid].group_size,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": floats,
    }


def _parts(weight: QuantizedWeight) -> list[Tensor]:
    tensor = weight.load()
    scale_OG = tensor.params["scale"]
    middle = torch.full(scale_OG.shape, 1 << (BITS - 1), dtype=torch.uint8)
    zero_OG = tensor.params.get("zero", middle)
    return [_interleaved(tensor.codes_OI), _interleaved(zero_OG), scale_OG.T]


def _interleaved(codes_OX: Tensor) -> Tensor:
    """int32 (X, O / 8)."""
    rows = torch.arange(len(codes_OX)).reshape(-1, len(ORDER))[:, list(ORDER)].flatten()
    return pack_words(codes_OX[rows], BITS).T
