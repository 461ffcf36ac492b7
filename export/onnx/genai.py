"""`genai_config.json`, with which onnxruntime-genai runs a folder: names, sizes, tokens, sampling.

It lies at the folder's root beside tokenizer.json, tokenizer_config.json and chat_template.jinja,
which genai reads as the checkpoint has them (all tokenizers of the R1 family: the same ids as
`tokenizers`). The search section takes over generation_config.json, R1's temperature 0.6 and top-p
0.95, without the 50 most probable tokens to which genai's own builder limits the choice.

Source: the files that onnxruntime-genai 0.18's builder writes, and running the folder in it.
"""

import json
from pathlib import Path
from typing import Any

from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.json_file import read_json
from tightfit.files import write_text_whole

GENAI_CONFIG_NAME = "genai_config.json"
_MODEL_TYPES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama"}
"""genai's name for a decoder of each family; DeepSeek-V3 it does not know."""
_EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Keeps the activations of what onnxruntime fuses to MatMulNBits (INT8 with one scale per row);
without it they are rounded to 8 bits, 4e-2 of the logits. genai hands entries that it does not know
on to the session."""
_ALL_TOKENS = 0
"""`top_k` that keeps every token."""


def genai_model_type(model_type: str) -> str | None:
    """What genai calls a family; None where it cannot run it."""
    return _MODEL_TYPES.get(model_type)


def write_genai_config(
    folder: Path,
    dimensions: ModelDimensions,
    *,
    model_file: str = "onnx/model.onnx",
    context_tokens: int | None = None,
) -> bool:
    """Write it into `folder`, which holds config.json and the tokenizer.

    `model_file` is relative to the folder, in the `ort` dialect. `context_tokens` is how many
    tokens genai keeps room for unless told otherwise (its KV cache has that size from the start);
    None: the model's longest context. Returns whether genai knows the family: where it does not,
    nothing is written.
    """
    model_type = genai_model_type(dimensions.model_type)
    if model_type is None:
        return False
    longest = dimensions.max_position_embeddings
    generation = read_json(folder / "generation_config.json")
    document = {
        "model": {
            **_special_tokens(read_json(folder / CONFIG_NAME) | _given(generation)),
            "context_length": longest,
            "decoder": _decoder(dimensions, model_file),
            "type": model_type,
            "vocab_size": dimensions.vocab_size,
        },
        "search": _search(generation, min(context_tokens or longest, longest)),
    }
    write_text_whole(folder / GENAI_CONFIG_NAME, json.dumps(document, indent=2) + "\n")
    return True


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _special_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """The ids that generation begins, ends and pads with; padding defaults to the first end."""
    end = values.get("eos_token_id")
    first_end = end[0] if isinstance(end, list) else end
    tokens = {
        "bos_token_id": values.get("bos_token_id"),
        "eos_token_id": end,
        "pad_token_id": values.get("pad_token_id", first_end),
    }
    return _given(tokens)


def _decoder(dimensions: ModelDimensions, model_file: str) -> dict[str, Any]:
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **_EXACT},
        "filename": model_file,
        "head_size": dimensions.head_dim,
        "hidden_size": dimensions.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": dimensions.n_heads,
        "num_hidden_layers": dimensions.n_layers,
        "num_key_value_heads": dimensions.n_kv_heads,
    }


def _search(generation: dict[str, Any], max_length: int) -> dict[str, Any]:
    sampling: dict[str, Any] = {"do_sample": bool(generation.get("do_sample"))}
    if sampling["do_sample"]:
        given = {key: generation.get(key) for key in ("temperature", "top_p")}
        sampling |= _given(given) | {"top_k": generation.get("top_k") or _ALL_TOKENS}
    # GroupQueryAttention appends to the cache in place: one buffer is past and present.
    return {"max_length": max_length, "past_present_share_buffer": True, **sampling}
