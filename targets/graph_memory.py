"""What an ONNX graph or an engine needs in memory, one sequence at a time: an estimate.

    total = weights + KV cache + compute buffers + runtime overhead

with e bytes of the graph's precision (2 or 4), prompts read in parts of u = 512 tokens:

Weights   the data file, all of it on the device. onnxruntime also keeps what it computes from
          constants: floats narrower than the graph count as wide as the graph, and matrices behind
          DequantizeLinear (FP8, one scale per row) count a second time, as wide as the graph.
KV cache  2 (keys and values) * layers * kv_heads * head_dim * e * context, in TensorRT twice: a
          step reads the cache of the step before and writes its own.
Compute   the larger of two moments:
              head:       e * u * (vocabulary + 2 * hidden)         logits of all positions
              last block: e * u * (3 * intermediate + 4 * hidden) + scores
          scores are e * u * context (the mask of fused attention) on a GPU, and that for each
          head on a CPU, where attention is not fused.
Runtime   a constant of the target.

docs/memory.md has what onnxruntime took on a CPU beside these figures; GPUs are unmeasured.
"""

from collections.abc import Mapping, Sequence
from math import prod

from tightfit.calib.dimensions import ModelDimensions
from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS, PER_CHANNEL
from tightfit.targets.memory import MICRO_BATCH_TOKENS, MemoryUse
from tightfit.targets.onnx_data import PRECISION_BYTES, GraphKind, weight_sizes
from tightfit.targets.profile import Target

_KEYS_AND_VALUES = 2


def graph_memory_use(
    dimensions: ModelDimensions,
    target: Target,
    kind: GraphKind,
    *,
    weights_bytes: int,
    context_tokens: int,
) -> MemoryUse:
    """Memory of a graph whose weights take `weights_bytes` there (`graph_weights_bytes`)."""
    element_bytes = PRECISION_BYTES[kind.precision]
    copies = 1 if kind.own_operators else 2
    cached = _KEYS_AND_VALUES * dimensions.n_layers * dimensions.kv_width * context_tokens
    return MemoryUse(
        weights_bytes=weights_bytes,
        kv_cache_bytes=cached * element_bytes * copies,
        compute_bytes=_activation_bytes(dimensions, target, element_bytes, context_tokens),
        runtime_bytes=target.runtime_overhead_bytes,
    )


def graph_weights_bytes(
    dimensions: ModelDimensions,
    shapes: Mapping[str, Sequence[int]],
    storage: Mapping[str, str],
    kind: GraphKind,
    embedding: str,
) -> int:
    """Bytes of the weights on the device."""
    width = PRECISION_BYTES[kind.precision]

    def resident(name: str, shape: Sequence[int]) -> int:
        stored = sum(weight_sizes(storage[name], shape, kind))
        computed = prod(shape) * width
        if storage[name] in FLOAT_BYTES:
            if FLOAT_BYTES[storage[name]] == width:
                return stored
            if name != embedding:
                return computed
            # Rows are fetched and then cast; a tied head is a second copy, cast as a whole.
            return stored + (computed if dimensions.tie_word_embeddings else 0)
        return stored + (computed if _is_dequantized(storage[name], kind) else 0)

    return sum(resident(name, shape) for name, shape in shapes.items())


def _is_dequantized(grid: str, kind: GraphKind) -> bool:
    """Whether a float matrix is made of it: TensorRT dequantizes inside its kernels."""
    return kind.own_operators and (grid in FLOAT8 or INTEGERS[grid].group_size == PER_CHANNEL)


def _activation_bytes(
    dimensions: ModelDimensions, target: Target, element_bytes: int, context_tokens: int
) -> int:
    hidden, wide = dimensions.hidden_size, dimensions.intermediate_size
    n_score_maps = dimensions.n_heads if target.kind == "cpu" else 1
    head = dimensions.vocab_size + 2 * hidden
    block = 3 * wide + 4 * hidden + n_score_maps * context_tokens
    return element_bytes * MICRO_BATCH_TOKENS * max(head, block)
