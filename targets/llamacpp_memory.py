"""What a GGUF needs in memory under llama.cpp, one sequence at a time.

    total = weights + KV cache + compute buffers + runtime overhead

Weights   exact: the bytes of every tensor in its scheme's type. On a GPU llama.cpp leaves the token
          table in host memory unless it is also the head (its log: "CPU buffer size").
KV cache  2 (keys and values) * layers * kv_heads * head_dim * 2 bytes (F16) * context, the context
          rounded up to a multiple of 256 as `llama_init_from_model` does.
Compute   the larger of two moments of the graph, for a micro-batch of u = 512 tokens:
              head:       4 * u * (vocabulary + 2 * hidden)            float32 logits, input, output
              last block: 2 * u * context + 4 * u * (3 * intermediate + 4 * hidden)
                                                  F16 mask of flash attention, the MLP's activations
          fitted to what llama.cpp reports; docs/memory.md has the figures beside the formula.
Runtime   a constant of the target: CUDA context and cuBLAS workspace, or the process itself.

First form: no batch over one, no split over devices, no quantized KV cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from tightfit.calib.dimensions import ModelDimensions
from tightfit.targets.profile import GIB, Target
from tightfit.targets.schemes.ggml_types import tensor_bytes

CONTEXT_STEP_TOKENS = 256
"""llama.cpp pads the KV cache to this (flash attention reads it in such strides)."""
MICRO_BATCH_TOKENS = 512
"""llama.cpp's default `n_ubatch`."""
_KIB = 1 << 10
_MIB = 1 << 20
_F16_BYTES = 2
_F32_BYTES = 4
_KEYS_AND_VALUES = 2
_TOKEN_TABLE = "token_embd.weight"
_HEAD = "output.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """What a model takes of the target's memory."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.runtime_bytes


def memory_use(
    dimensions: ModelDimensions, weights_bytes: int, target: Target, context_tokens: int
) -> MemoryUse:
    """Memory of a GGUF whose weights take `weights_bytes` there (`resident_weights_bytes`)."""
    return MemoryUse(
        weights_bytes=weights_bytes,
        kv_cache_bytes=kv_cache_bytes(dimensions, context_tokens),
        compute_bytes=compute_bytes(dimensions, context_tokens),
        runtime_bytes=target.runtime_overhead_bytes,
    )


def resident_weights_bytes(
    shapes: Mapping[str, Sequence[int]],
    types: Mapping[str, GGMLQuantizationType],
    target: Target,
) -> int:
    """Bytes of the weights in the target's own memory."""
    on_host = {_TOKEN_TABLE} if target.kind == "gpu" and _HEAD in shapes else set()
    return sum(
        tensor_bytes(types[name], shape) for name, shape in shapes.items() if name not in on_host
    )


def kv_cache_bytes(dimensions: ModelDimensions, context_tokens: int) -> int:
    """Bytes of an F16 KV cache."""
    assert dimensions.mla is None, "a latent cache is smaller than keys and values"
    per_token = _KEYS_AND_VALUES * dimensions.n_layers * dimensions.kv_width * _F16_BYTES
    return per_token * padded_context(context_tokens)


def compute_bytes(dimensions: ModelDimensions, context_tokens: int) -> int:
    """Bytes of llama.cpp's compute buffer with flash attention."""
    hidden, wide = dimensions.hidden_size, dimensions.intermediate_size
    head = _F32_BYTES * MICRO_BATCH_TOKENS * (dimensions.vocab_size + 2 * hidden)
    mask = _F16_BYTES * MICRO_BATCH_TOKENS * padded_context(context_tokens)
    block = _F32_BYTES * MICRO_BATCH_TOKENS * (3 * wide + 4 * hidden)
    return max(head, mask + block)


def padded_context(context_tokens: int) -> int:
    """The context as llama.cpp allocates it."""
    return -(-context_tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS


def size_text(n_bytes: float) -> str:
    """Bytes as people read them: GiB, MiB below a tenth of one, KiB below a tenth of one."""
    if n_bytes >= GIB / 10:
        return f"{n_bytes / GIB:.2f} GiB"
    return f"{n_bytes / _MIB:.1f} MiB" if n_bytes >= _MIB / 10 else f"{n_bytes / _KIB:.1f} KiB"
