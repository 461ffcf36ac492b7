"""Writes the model folder in the form in which DeepSeek publishes R1-Distill-Qwen.

What: `config.json` with the keys of the original's file (`rope_theta` at the top and
`torch_dtype`, as checkpoints of its time have them; transformers 5 still reads both), BF16
weights in one safetensors file, and R1's sampling defaults.
Why by hand: transformers 5 would write its newer form, which no published R1 checkpoint has,
and the toolchain must be exercised on the published form.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

R1_TEMPERATURE = 0.6  # DeepSeek's recommendation for R1
R1_TOP_P = 0.95
READABLE_BY_ALL = 0o644  # the folder is installed with the wheel


def write_config(folder: Path, model: Qwen2ForCausalLM) -> None:
    """`config.json` and `generation_config.json`."""
    config = model.config
    rope_parameters = config.rope_parameters
    assert rope_parameters is not None
    sentence_tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    document = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        **sentence_tokens,
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen2",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope_parameters["rope_theta"],
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    sampling = {
        "_from_model_config": True,
        **sentence_tokens,
        "do_sample": True,
        "temperature": R1_TEMPERATURE,
        "top_p": R1_TOP_P,
    }
    _write_json(folder / "config.json", document)
    _write_json(folder / "generation_config.json", sampling)


def write_weights(folder: Path, model: Qwen2ForCausalLM) -> None:
    """`model.safetensors` in BF16; the weights must be BF16 values already."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.to(torch.bfloat16).contiguous()
        assert torch.equal(tensors[name].float(), tensor), f"{name} holds more than BF16"
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(READABLE_BY_ALL)  # safetensors creates the file for its owner only


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
