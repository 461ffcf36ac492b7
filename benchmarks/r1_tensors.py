"""The tensors of a synthetic DeepSeek-V3 checkpoint: names, types and shapes as R1 stores them.

Linears are FP8 E4M3 with a float32 `weight_scale_inv` of a number for each block of 128x128.
Embedding, head, norms, routers and the MTP layer's `eh_proj` are BF16, the routers' corrections
float32. The MTP layer stands after the last one, with its own copy of embedding and head.
(README_WEIGHTS.md of deepseek-ai/DeepSeek-V3; types as vLLM #23640 and transformers #42580 say.)

Legend: E experts.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.r1_numbers import BLOCK, Floats, Numbers
from benchmarks.r1_sizes import ShapedR1

CORRECTION_SPREAD = 0.1
"""Sigmoid scores spread by 0.2: some experts get several times the tokens of others."""
COLD_CORRECTION = -10.0
"""Far below every score that a sigmoid gives."""
ITEMSIZE = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
"""Bytes of a number of each type, by safetensors' names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of the checkpoint, not drawn yet."""

    name: str
    dtype: str
    """By safetensors' name."""
    shape: tuple[int, ...]
    draw: Callable[[], Iterator[bytes]]
    """Its bytes, a band of rows at a time; the same ones on every call."""

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


def stored_tensors(model: ShapedR1) -> Iterator[StoredTensor]:
    """Everything that is stored, in the model's order."""
    numbers = Numbers(model.seed)
    yield _plain(numbers, "model.embed_tokens.weight", (model.vocab, model.hidden), 1.0)
    for layer in range(model.n_layers):
        yield from _block(model, numbers, layer)
    yield _norm(numbers, "model.norm.weight", model.hidden)
    yield _head(model, numbers, "lm_head.weight")
    for layer in range(model.n_layers, model.n_layers + model.n_mtp_layers):
        yield from _mtp_layer(model, numbers, layer)


def count_weights(model: ShapedR1) -> int:
    """Weights that the model runs with: no scales, no MTP layer."""
    mtp = tuple(
        f"model.layers.{layer}."
        for layer in range(model.n_layers, model.n_layers + model.n_mtp_layers)
    )
    return sum(
        math.prod(tensor.shape)
        for tensor in stored_tensors(model)
        if not tensor.name.startswith(mtp) and not tensor.name.endswith("_scale_inv")
    )


def _mtp_layer(model: ShapedR1, numbers: Numbers, layer: int) -> Iterator[StoredTensor]:
    at, hidden = f"model.layers.{layer}.", model.hidden
    yield _plain(numbers, at + "embed_tokens.weight", (model.vocab, hidden), 1.0)
    yield _norm(numbers, at + "enorm.weight", hidden)
    yield _norm(numbers, at + "hnorm.weight", hidden)
    yield _plain(numbers, at + "eh_proj.weight", (hidden, 2 * hidden), 1 / math.sqrt(2 * hidden))
    yield from _block(model, numbers, layer)
    yield _norm(numbers, at + "shared_head.norm.weight", hidden)
    yield _head(model, numbers, at + "shared_head.head.weight")


def _block(model: ShapedR1, numbers: Numbers, layer: int) -> Iterator[StoredTensor]:
    at = f"model.layers.{layer}."
    yield _norm(numbers, at + "input_layernorm.weight", model.hidden)
    yield from _attention(model, numbers, at + "self_attn.")
    yield _norm(numbers, at + "post_attention_layernorm.weight", model.hidden)
    if layer < model.n_dense_layers:
        yield from _mlp(numbers, at + "mlp.", model.hidden, model.intermediate)
        return
    size = (model.n_experts, model.hidden)
    yield _plain(numbers, at + "mlp.gate.weight", size, 1 / math.sqrt(model.hidden))
    yield _correction(model, numbers, at + "mlp.gate.e_score_correction_bias", layer)
    yield from _mlp(numbers, at + "mlp.shared_experts.", model.hidden, model.moe_intermediate)
    for expert in range(model.n_experts):
        path = f"{at}mlp.experts.{expert}."
        yield from _mlp(numbers, path, model.hidden, model.moe_intermediate)


def _attention(model: ShapedR1, numbers: Numbers, at: str) -> Iterator[StoredTensor]:
    heads, latent, hidden = model.n_heads, model.kv_lora_rank, model.hidden
    q_width = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    kv_width = heads * (model.qk_nope_head_dim + model.v_head_dim)
    yield from _linear(numbers, at + "q_a_proj", (model.q_lora_rank, hidden))
    yield _norm(numbers, at + "q_a_layernorm.weight", model.q_lora_rank)
    yield from _linear(numbers, at + "q_b_proj", (q_width, model.q_lora_rank))
    cached = (latent + model.qk_rope_head_dim, hidden)
    yield from _linear(numbers, at + "kv_a_proj_with_mqa", cached)
    yield _norm(numbers, at + "kv_a_layernorm.weight", latent)
    yield from _linear(numbers, at + "kv_b_proj", (kv_width, latent))
    yield from _linear(numbers, at + "o_proj", (hidden, heads * model.v_head_dim))


def _mlp(numbers: Numbers, at: str, hidden: int, wide: int) -> Iterator[StoredTensor]:
    yield from _linear(numbers, at + "gate_proj", (wide, hidden))
    yield from _linear(numbers, at + "up_proj", (wide, hidden))
    yield from _linear(numbers, at + "down_proj", (hidden, wide))


def _linear(numbers: Numbers, path: str, shape: tuple[int, int]) -> Iterator[StoredTensor]:
    name = path + ".weight"
    blocks = (math.ceil(shape[0] / BLOCK), math.ceil(shape[1] / BLOCK))

    def codes() -> Iterator[bytes]:
        return (band.tobytes() for band in numbers.codes(name, shape))

    def scales() -> Iterator[bytes]:
        yield numbers.scale(name, shape).tobytes()

    yield StoredTensor(name=name, dtype="F8_E4M3", shape=shape, draw=codes)
    yield StoredTensor(name=name + "_scale_inv", dtype="F32", shape=blocks, draw=scales)


def _plain(numbers: Numbers, name: str, shape: tuple[int, ...], deviation: float) -> StoredTensor:
    def draw() -> Iterator[bytes]:
        return map(_bfloat16, numbers.normal(name, shape, deviation))

    return StoredTensor(name=name, dtype="BF16", shape=shape, draw=draw)


def _head(model: ShapedR1, numbers: Numbers, name: str) -> StoredTensor:
    return _plain(numbers, name, (model.vocab, model.hidden), 1 / math.sqrt(model.hidden))


def _norm(numbers: Numbers, name: str, width: int) -> StoredTensor:
    def draw() -> Iterator[bytes]:
        yield _bfloat16(numbers.norm(name, width))

    return StoredTensor(name=name, dtype="BF16", shape=(width,), draw=draw)


def _correction(model: ShapedR1, numbers: Numbers, name: str, layer: int) -> StoredTensor:
    def draw() -> Iterator[bytes]:
        (correction_E,) = numbers.normal(name, (model.n_experts,), CORRECTION_SPREAD)
        correction_E[list(model.cold_experts(layer))] = COLD_CORRECTION
        yield correction_E.tobytes()

    return StoredTensor(name=name, dtype="F32", shape=(model.n_experts,), draw=draw)


def _bfloat16(values: Floats) -> bytes:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
