"""Small DeepSeek-V3 checkpoints with random weights, saved by transformers from the real config."""

import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)

from support.checkpoints import FP8_MAX, TOKENIZER_FILES, rewrite_tensors
from support.onnx_models import FLOATS, round_to_nearest
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.locate import locate_model
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight, Weights

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
"""Unequal mscales, so that both the factor on cos and sin and the one on the scores act."""
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 64,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    # Not the default: the norms of the latents keep 1e-6 whatever the config says.
    "rms_norm_eps": 1e-3,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "bos_token_id": 506,
    "eos_token_id": 507,
    "pad_token_id": 507,
}
"""Every part of R1's architecture, with widths that differ so that mixing two up shows."""

EXPERT_NAME = re.compile(r"(.+\.experts\.)(\d+)(\..+)")
"""An expert's matrix: what comes before its number, the number, what comes after."""


def make_deepseek_v3(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    yarn: bool = True,
    cold_experts: tuple[int, ...] = (),
    mtp: bool = False,
    **config: object,
) -> Path:
    """Write a checkpoint folder with tiny-r1's tokenizer; experts are named one by one, as in R1.

    Norms, biases and the router's correction are random too: left at 1 and 0, a mistake in them
    would not show; `cold_experts` have one that keeps them from being chosen. The embedding is
    drawn wide enough to make the routers' scores differ. Only with `mtp` the layer that the config
    promises after the last one is there; transformers does not have it.
    """
    torch.manual_seed(seed)
    values = dict(SIZES)
    if yarn:
        values["rope_parameters"] = {"rope_theta": 10000.0, **YARN}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**values | config)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)
            elif name.endswith("gate.weight"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(0.0, 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.data = torch.randn(buffer.shape) * 0.1
                buffer.data[list(cold_experts)] = -100.0
    model.save_pretrained(path)
    if mtp:
        state = load_file(path / "model.safetensors")
        rewrite_tensors(path, state | mtp_layer(state, model.config.num_hidden_layers))
    for name in TOKENIZER_FILES:
        shutil.copy(locate_model(None).path / name, path / name)
    return path


def mtp_layer(state: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """A multi-token-prediction layer as R1 stores one, drawn anew but for its two copies."""
    last, own = f"model.layers.{n_layers - 1}.", f"model.layers.{n_layers}."
    norm, embedding = state["model.norm.weight"], state["model.embed_tokens.weight"]
    like = {name.replace(last, own): each for name, each in state.items() if last in name}
    like |= {f"{own}{name}.weight": norm for name in ("enorm", "hnorm", "shared_head.norm")}
    like[f"{own}eh_proj.weight"] = torch.empty(len(norm), 2 * len(norm), dtype=embedding.dtype)
    draw = torch.Generator().manual_seed(n_layers)
    layer = {
        name: (torch.randn(each.shape, generator=draw) * 0.05 + (each.ndim == 1)).to(each.dtype)
        for name, each in like.items()
    }
    layer[f"{own}embed_tokens.weight"] = embedding.clone()
    layer[f"{own}shared_head.head.weight"] = state["lm_head.weight"].clone()
    return layer


def logical_tensors(state: Mapping[str, Tensor], dimensions: ModelDimensions) -> dict[str, Tensor]:
    """A checkpoint's tensors under the architecture's names: experts merged, kv_b split."""
    mla = dimensions.mla
    logical: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if match := EXPERT_NAME.fullmatch(name):
            experts.setdefault(f"{match[1]}*{match[3]}", {})[int(match[2])] = tensor
        elif name.endswith("kv_b_proj.weight"):
            widths = [mla.qk_nope_head_dim, mla.v_head_dim]
            heads = tensor.view(dimensions.n_heads, sum(widths), mla.kv_lora_rank)
            keys, values = heads.split(widths, dim=1)
            logical[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
            logical[name.replace("kv_b_proj", "v_b_proj")] = values
        else:
            logical[name] = tensor
    for name, each in experts.items():
        logical[name] = torch.stack([each[number] for number in range(len(each))])
    return logical


def checkpoint_tensors(logical: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `logical_tensors`."""
    state: dict[str, Tensor] = {}
    for name, tensor in logical.items():
        if "*" in name:
            state |= {name.replace("*", str(n)): each for n, each in enumerate(tensor)}
        elif name.endswith("k_b_proj.weight"):
            values = logical[name.replace("k_b_proj", "v_b_proj")]
            heads = torch.cat([tensor.transpose(1, 2), values], dim=1)
            state[name.replace("k_b_proj", "kv_b_proj")] = heads.flatten(0, 1)
        elif not name.endswith("v_b_proj.weight"):
            state[name] = tensor
    return state


def deepseek_v3_weights(
    checkpoint: Path, linears: str, *, experts: str | None = None, **rounding: object
) -> Weights:
    """All weights of a checkpoint, linears and experts on a grid or in a float type.

    Embedding, head, norms and routers are bfloat16, the routers' corrections float32.
    """
    weights: dict[str, Weight] = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        stored_as = (experts or linears) if ".experts." in name else linears
        if not name.endswith("proj.weight") and not name.endswith("proj_with_mqa.weight"):
            weights[name] = FloatWeight(
                shape=tuple(tensor.shape), dtype=tensor.dtype, load=partial(_same, tensor)
            )
        elif stored_as in FLOATS:
            weights[name] = FloatWeight(
                shape=tuple(tensor.shape), dtype=FLOATS[stored_as], load=partial(_same, tensor)
            )
        else:
            rounded = round_to_nearest(stored_as, tensor, **rounding)
            weights[name] = QuantizedWeight(
                shape=rounded.shape,
                grid=stored_as,
                load=partial(_same, rounded),
                group_index_I=rounded.group_index_I,
            )
    return weights


def deepseek_v3_reference(checkpoint: Path, weights: Weights, folder: Path) -> PreTrainedModel:
    """Transformers in float32 on the numbers that the weights stand for, by way of `folder`."""
    shutil.copytree(checkpoint, folder)
    values = {name: weight.values().contiguous() for name, weight in weights.items()}
    rewrite_tensors(folder, values)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    for name, module in model.named_modules():
        weight = weights.get(f"{name}.weight")
        if isinstance(weight, QuantizedWeight) and weight.input_scale is not None:
            module.register_forward_pre_hook(partial(_round_input, weight.input_scale))
    return model.eval()


def _round_input(
    scale: float, _module: torch.nn.Module, inputs: tuple[torch.Tensor]
) -> tuple[torch.Tensor]:
    steps = (inputs[0] / scale).clamp(-FP8_MAX, FP8_MAX)
    return (steps.to(torch.float8_e4m3fn).float() * scale,)


def _same(value):
    return value
