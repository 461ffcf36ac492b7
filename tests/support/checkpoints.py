"""Small checkpoints with random weights, saved by transformers from the real config classes."""

import json
import re
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from support.smollm2 import smollm2_checkpoint
from tightfit.calib.locate import locate_model

__all__ = [
    "ROPES",
    "make_checkpoint",
    "rewrite_tensors",
    "smollm2_checkpoint",
    "to_fp8_blocks",
    "to_fp8_compressed_tensors",
]

Family = Literal["qwen2", "qwen3", "llama"]

CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}
"""As the family uses them; the short original contexts make every branch act within 512 tokens."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FP8_LINEAR = re.compile(r"(?<!\.eh)_proj(_with_mqa)?\.weight$")
"""What such checkpoints store in FP8: of R1 all linears but the MTP layer's `eh_proj`."""
FP8_MAX = 448.0
FP8_BLOCK = 128


def make_checkpoint(
    path: Path,
    family: Family,
    *,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    tie: bool = False,
    rope: Literal["linear", "llama3", "yarn"] | None = None,
    hidden: int = 256,
    **config: object,
) -> Path:
    """Write a checkpoint folder with tiny-r1's tokenizer (512 tokens) and return it.

    Norms and biases are random too: left at 1 and 0, a mistake in them would not show.
    """
    torch.manual_seed(seed)
    values: dict[str, object] = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tie,
        "bos_token_id": 506,
        "eos_token_id": 507,
        "pad_token_id": 507,
    }
    if family == "qwen3":
        values["head_dim"] = hidden // 4
    if rope is not None:
        values["rope_parameters"] = {"rope_theta": 10000.0, **ROPES[rope]}
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**values | config), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.normal_(centre, 0.1)
    third_bytes = model.num_parameters() * dtype.itemsize // 3
    model.save_pretrained(path, max_shard_size=third_bytes if sharded else "5GB")
    for name in TOKENIZER_FILES:
        shutil.copy(locate_model(None).path / name, path / name)
    return path


def rewrite_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the weights of a single-file checkpoint."""
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def to_fp8_blocks(src: Path, dst: Path) -> Path:
    """Write DeepSeek's native FP8 form of a single-file checkpoint: E4M3 in 128x128 blocks."""

    def quantize(w_OI: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (-(-size // FP8_BLOCK) for size in w_OI.shape)
        scale_RC = torch.empty(rows, columns)
        q_OI = torch.empty(w_OI.shape, dtype=torch.float8_e4m3fn)
        for row in range(rows):
            for column in range(columns):
                at = (
                    slice(row * FP8_BLOCK, (row + 1) * FP8_BLOCK),
                    slice(column * FP8_BLOCK, (column + 1) * FP8_BLOCK),
                )
                scale = w_OI[at].abs().max().clamp(min=1e-12) / FP8_MAX
                scale_RC[row, column] = scale
                q_OI[at] = (w_OI[at] / scale).to(torch.float8_e4m3fn)
        return q_OI, scale_RC

    section = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
    }
    return _to_fp8(src, dst, quantize, "_scale_inv", section)


def to_fp8_compressed_tensors(src: Path, dst: Path, strategy: Literal["tensor", "channel"]) -> Path:
    """Write the FP8 form that llm-compressor gives a single-file checkpoint (bfloat16 scales)."""

    def quantize(w_OI: Tensor) -> tuple[Tensor, Tensor]:
        if strategy == "tensor":
            scale = w_OI.abs().max().reshape(1) / FP8_MAX
        else:
            scale = w_OI.abs().amax(dim=1, keepdim=True) / FP8_MAX
        # Rounded up to bfloat16: rounded down, the largest weight would leave E4M3's range.
        scale = (scale * (1 + 2**-7)).to(torch.bfloat16)
        return (w_OI / scale.float()).to(torch.float8_e4m3fn), scale

    section = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": strategy,
                    "symmetric": True,
                    "dynamic": False,
                },
                "input_activations": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "token",
                    "symmetric": True,
                    "dynamic": True,
                },
            }
        },
    }
    return _to_fp8(src, dst, quantize, "_scale", section)


def _to_fp8(src: Path, dst: Path, quantize, suffix: str, section: dict[str, object]) -> Path:
    shutil.copytree(src, dst)
    tensors = {}
    for name, tensor in load_file(src / "model.safetensors").items():
        if FP8_LINEAR.search(name):
            tensors[name], tensors[name + suffix] = quantize(tensor.float())
        else:
            tensors[name] = tensor
    rewrite_tensors(dst, tensors)
    config = json.loads((src / "config.json").read_text())
    (dst / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return dst
