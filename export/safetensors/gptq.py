"""GPTQ checkpoints, version 1 of AutoGPTQ's layout.

    qweight int32 (I bits / 32, O)    codes packed downwards
    qzeros  int32 (G, O bits / 32)    zero points minus one, packed along the rows of the weight
    scales  float16 (G, O)
    g_idx   int32 (I)                 group of every column

Read by transformers (through gptqmodel), vLLM, TensorRT-LLM. A zero point of 0 has no form in
version 1 that its readers agree on, so it is refused.

Source: AutoGPTQ, `qlinear_cuda.pack`; gptqmodel, `QuantizeConfig` and `convert_gptq_v1_to_v2`.

Shape legend: O output rows, I input columns, G groups.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tightfit import __version__
from tightfit.errors import QuantizationError
from tightfit.export.safetensors.pieces import Piece, TensorSpec, module_name
from tightfit.export.safetensors.words import n_words, pack_words
from tightfit.export.weights import QuantizedWeight, Weight
from tightfit.targets.grids import INTEGERS

PER_CHANNEL = -1
"""Group size that stands for one scale per row in the format."""
_IN_BLOCK = re.compile(r"model\.layers\.\d+\.")


def linear(name: str, weight: QuantizedWeight) -> Piece:
    """The four parts of a linear; raises `QuantizationError` for a shape that words do not fill."""
    facts, (n_rows, n_columns) = INTEGERS[weight.grid], weight.shape
    module, n_groups = module_name(name), facts.n_groups(n_columns)
    specs = (
        _spec(module, "qweight", torch.int32, (n_words(name, n_columns, facts.bits), n_rows)),
        _spec(module, "qzeros", torch.int32, (n_groups, n_words(name, n_rows, facts.bits))),
        _spec(module, "scales", torch.float16, (n_groups, n_rows)),
        _spec(module, "g_idx", torch.int32, (n_columns,)),
    )
    return Piece(specs=specs, load=lambda: _parts(name, weight))


def quantization_config(weights: Mapping[str, Weight], grid: str) -> dict[str, Any]:
    """What config.json says; quantize_config.json says the same."""
    facts = INTEGERS[grid]
    section = {
        "quant_method": "gptq",
        "bits": facts.bits,
        "group_size": facts.group_size or PER_CHANNEL,
        "desc_act": has_act_order(weights),
        "sym": facts.symmetric,
        "lm_head": False,
        "static_groups": False,
        "true_sequential": True,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"tightfit:{__version__}"]},
    }
    names = _listed_modules(weights)
    return section | ({"modules_in_block_to_quantize": [names]} if names else {})


def has_act_order(weights: Mapping[str, Weight]) -> bool:
    """Whether the columns of any matrix were regrouped."""
    return any(
        isinstance(weight, QuantizedWeight) and weight.group_index_I is not None
        for weight in weights.values()
    )


def _listed_modules(weights: Mapping[str, Weight]) -> list[str]:
    """Ends of the names of all quantized linears, where a linear of a block stays a float.

    Without the list transformers takes every linear of a block for quantized. Names are shortened
    to those within a block where all blocks agree: R1 has 45 thousand linears.
    """
    quantized: list[str] = []
    floats: list[str] = []
    for name, weight in weights.items():
        if _IN_BLOCK.match(name) and len(weight.shape) == 2:
            (quantized if isinstance(weight, QuantizedWeight) else floats).append(module_name(name))
    if not floats:
        return []
    short = list(dict.fromkeys(_IN_BLOCK.sub("", name) for name in quantized))
    return quantized if any(name.endswith(tuple(short)) for name in floats) else short


def _parts(name: str, weight: QuantizedWeight) -> list[Tensor]:
    facts, tensor = INTEGERS[weight.grid], weight.load()
    scale_OG = tensor.params["scale"]
    middle = torch.full(scale_OG.shape, 1 << (facts.bits - 1), dtype=torch.uint8)
    zero_OG = tensor.params.get("zero", middle)
    n_zero = int((zero_OG == 0).sum())
    if n_zero:
        raise QuantizationError(
            f"{name}: {n_zero} of {zero_OG.numel()} zero points are 0, which GPTQ's version 1 "
            "cannot store: it keeps them minus one",
            allowed="a symmetric grid, or groups whose weights have both signs",
            hint=f"--scheme {weight.grid.replace('asym', 'sym')}, or --format compressed-tensors, "
            "which goes on from the finished work",
        )
    group_I = tensor.group_index_I
    if group_I is None:
        columns = torch.arange(weight.shape[1], dtype=torch.int32)
        group_I = columns // (facts.group_size or weight.shape[1])
    return [
        pack_words(tensor.codes_OI.T, facts.bits),
        pack_words(zero_OG - 1, facts.bits).T,
        scale_OG.T,
        group_I.to(torch.int32),
    ]


def _spec(module: str, part: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name=f"{module}.{part}", dtype=dtype, shape=shape)
