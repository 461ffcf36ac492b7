"""Checkpoints of integers, packed by hand: one bit string per row or column, cut into words.

Random codes, scales and zero points are drawn first; what a reader must give is computed from them
one column at a time. Each packer follows its format's description, and none knows our readers.

Shape legend: O output rows, I input columns, G groups.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from support.checkpoints import rewrite_tensors

LINEAR = re.compile(r"(?<!kv_b)(?<!eh)_proj(_with_mqa)?\.weight$")
_WORD_BITS = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A format with one of its grids."""

    name: str
    """gptq, gptq_v2, awq, pack-quantized, int-quantized, or modelopt."""
    bits: int = 4
    group_size: int = 32
    """0: one scale per row."""
    symmetric: bool = True
    act_order: bool = False
    scale_dtype: torch.dtype = torch.float16

    @property
    def grid(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"int{self.bits}-{group}-{'sym' if self.symmetric else 'asym'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A matrix that nobody packed yet."""

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    group_I: Tensor

    def values(self) -> Tensor:
        """float32 (O, I): scale * (code - zero), column by column."""
        columns = [
            self.scale_OG[:, group].float() * (self.codes_OI[:, column] - self.zero_OG[:, group])
            for column, group in enumerate(self.group_I.tolist())
        ]
        return torch.stack(columns, dim=1)


def draw(shape: tuple[int, int], form: Form, seed: int = 0) -> Drawn:
    """Random codes and parameters; without the zero point that GPTQ's version 1 cannot say."""
    generator = torch.Generator().manual_seed(seed)
    n_rows, n_columns = shape
    width = form.group_size or n_columns
    n_groups = n_columns // width
    levels = 1 << form.bits

    def integers(low: int, *size: int) -> Tensor:
        return torch.randint(low, levels, size, generator=generator)

    zero_OG = torch.full((n_rows, n_groups), levels // 2)
    if not form.symmetric:
        zero_OG = integers(1 if form.name == "gptq" else 0, n_rows, n_groups)
    order_I = torch.arange(n_columns)
    if form.act_order:
        order_I = torch.randperm(n_columns, generator=generator)
    return Drawn(
        codes_OI=integers(0, n_rows, n_columns),
        scale_OG=(torch.rand(n_rows, n_groups, generator=generator) + 0.1).to(form.scale_dtype),
        zero_OG=zero_OG,
        group_I=order_I // width,
    )


def pack_run(values: Sequence[int], bits: int) -> list[int]:
    """int32 words of a bit string that holds the values one after the other, low bits first."""
    string = sum(value << (bits * place) for place, value in enumerate(values))
    n_words = -(-len(values) * bits // _WORD_BITS)
    words = [string >> (_WORD_BITS * word) & 0xFFFFFFFF for word in range(n_words)]
    return [word - (1 << _WORD_BITS) if word >> (_WORD_BITS - 1) else word for word in words]


def pack_rows(values_XN: Tensor, bits: int) -> Tensor:
    """int32 (X, W): every row a bit string of its own."""
    return torch.tensor([pack_run(row, bits) for row in values_XN.tolist()], dtype=torch.int32)


def pack(drawn: Drawn, form: Form) -> dict[str, Tensor]:
    """Parts by suffix."""
    codes, zeros, scales = drawn.codes_OI, drawn.zero_OG, drawn.scale_OG
    match form.name:
        case "gptq" | "gptq_v2":
            stored = zeros - 1 if form.name == "gptq" else zeros
            parts = {
                ".qweight": pack_rows(codes, form.bits).T,
                ".qzeros": pack_rows(stored.T, form.bits),
                ".scales": scales.T,
                ".g_idx": drawn.group_I.to(torch.int32),
            }
        case "awq":
            parts = {
                ".qweight": pack_rows(_interleave(codes.T), form.bits),
                ".qzeros": pack_rows(_interleave(zeros.T), form.bits),
                ".scales": scales.T,
            }
        case "pack-quantized":
            parts = {
                ".weight_packed": pack_rows(codes, form.bits),
                ".weight_scale": scales,
                ".weight_shape": torch.tensor(codes.shape),
            }
            if not form.symmetric:
                parts[".weight_zero_point"] = pack_rows(zeros.T, form.bits).T
            if form.act_order:
                parts[".weight_g_idx"] = drawn.group_I.to(torch.int32)
        case "int-quantized":
            parts = {".weight": (codes - 128).to(torch.int8), ".weight_scale": scales}
            if not form.symmetric:
                parts[".weight_zero_point"] = (zeros - 128).to(torch.int8)
        case "modelopt":
            signed = (codes - 8) % 16  # two's complement
            bytes_ = [low + 16 * high for low, high in signed.reshape(-1, 2, codes.shape[1])]
            parts = {".weight": torch.stack(bytes_).to(torch.uint8), ".weight_scale": scales}
        case other:
            raise AssertionError(other)
    return {suffix: part.contiguous() for suffix, part in parts.items()}


def _interleave(values_XO: Tensor) -> Tensor:
    """The values in the order in which AWQ puts eight of them into a word."""
    eights = values_XO.reshape(len(values_XO), -1, 8)
    return eights[:, :, list(_AWQ_ORDER)].flatten(1)


def section(form: Form) -> dict[str, Any]:
    """`quantization_config` as the format's own tools write it."""
    group_size = form.group_size or -1
    match form.name:
        case "gptq" | "gptq_v2":
            return {
                "quant_method": "gptq",
                "bits": form.bits,
                "group_size": group_size,
                "sym": form.symmetric,
                "desc_act": form.act_order,
                "checkpoint_format": form.name,
                "pack_dtype": "int32",
                "lm_head": False,
            }
        case "awq":
            return {
                "quant_method": "awq",
                "bits": form.bits,
                "group_size": group_size,
                "zero_point": not form.symmetric,
                "version": "gemm",
                "modules_to_not_convert": None,
            }
        case "modelopt":
            return {
                "quant_method": "modelopt",
                "quant_algo": "W4A16_AWQ",
                "group_size": group_size,
                "has_zero_point": False,
                "pre_quant_scale": True,
                "ignore": ["lm_head"],
            }
    weights = {
        "num_bits": form.bits,
        "type": "int",
        "strategy": "group" if form.group_size else "channel",
        "group_size": form.group_size or None,
        "symmetric": form.symmetric,
        "dynamic": False,
        "actorder": "group" if form.act_order else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form.name,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def to_packed(src: Path, dst: Path, form: Form) -> dict[str, Drawn]:
    """Replace every linear of a single-file checkpoint by a random one; gives what was drawn."""
    shutil.copytree(src, dst)
    tensors: dict[str, Tensor] = {}
    drawn: dict[str, Drawn] = {}
    for name, tensor in load_file(src / "model.safetensors").items():
        if not LINEAR.search(name):
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape
        drawn[name] = draw((rows, columns), form, seed=len(drawn))
        stem = name.removesuffix(".weight")
        tensors |= {stem + suffix: part for suffix, part in pack(drawn[name], form).items()}
    rewrite_tensors(dst, tensors)
    config = json.loads((src / "config.json").read_text())
    (dst / "config.json").write_text(json.dumps(config | {"quantization_config": section(form)}))
    return drawn
