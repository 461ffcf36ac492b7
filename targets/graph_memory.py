"""What an ONNX graph or an engine needs in memory, on one device: an estimate.

    total = weights + KV cache + compute buffers + runtime overhead

with e bytes of the graph's precision (2 or 4), prompts read in parts of u = 512 tokens:

Weights   the data file, all of it on the device. onnxruntime also keeps what it computes from
          constants: floats narrower than the graph count as wide as the graph, and matrices behind
          DequantizeLinear (FP8, one scale per row) count a second time, as wide as the graph.
KV cache  2 (keys and values) * layers * kv_heads * head_dim * e * context for each sequence, in
          TensorRT twice: a step reads the cache of the step before and writes its own.
Compute   for each sequence the larger of two moments:
              head:       e * u * (vocabulary + 2 * hidden)         logits of all positions
              last block: e * u * (3 * intermediate + 4 * hidden) + scores
          scores are e * u * context (the mask of fused attention) on a GPU, and that for each
          head on a CPU, where attention is not fused.
Runtime   a constant of the target.

docs/memory.md has what onnxruntime took on a CPU beside these figures; GPUs are unmeasured.
"""

from collections.abc import Sequence
from math import prod

from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS, PER_CHANNEL
from tightfit.targets.llamacpp_compute import MICRO_BATCH_TOKENS
from tightfit.targets.memory_use import DeviceUse, MemoryUse
from tightfit.targets.onnx_data import PRECISION_BYTES, GraphKind, weight_sizes
from tightfit.targets.profile import Target
from tightfit.targets.workload import CacheType, Workload

_KEYS_AND_VALUES = 2


def graph_memory_use(
    dimensions: ModelDimensions,
    target: Target,
    kind: GraphKind,
    *,
    weights_bytes: int,
    workload: Workload,
) -> MemoryUse:
    """Memory of a graph whose weights take `weights_bytes` there (`resident_bytes`).

    Raises `UsageError` for a cache that does not have the graph's precision.
    """
    if workload.cache_type is not CacheType.F16:
        raise UsageError(
            f"a graph has no KV cache of {workload.cache_type}",
            allowed="--kv-cache f16 for ONNX and TensorRT: their caches have the graph's precision",
            hint="leave --kv-cache out; a GGUF alone can have q8_0",
        )
    element_bytes = PRECISION_BYTES[kind.precision]
    copies = 1 if kind.own_operators else 2
    context, n_sequences = workload.context_tokens, workload.n_sequences
    cached = _KEYS_AND_VALUES * dimensions.n_layers * dimensions.kv_width * context
    activations = _activation_bytes(dimensions, target, element_bytes, context)
    use = DeviceUse(
        weights_bytes=weights_bytes,
        kv_cache_bytes=cached * element_bytes * copies * n_sequences,
        compute_bytes=activations * n_sequences,
        runtime_bytes=target.device_overhead_bytes,
    )
    return MemoryUse(devices=(use,))


def resident_bytes(
    dimensions: ModelDimensions,
    shape: Sequence[int],
    stored_as: str,
    kind: GraphKind,
    *,
    is_embedding: bool,
) -> int:
    """Bytes of one tensor of weights on the device."""
    width = PRECISION_BYTES[kind.precision]
    stored = sum(weight_sizes(stored_as, shape, kind))
    computed = prod(shape) * width
    if stored_as not in FLOAT_BYTES:
        return stored + (computed if _is_dequantized(stored_as, kind) else 0)
    if FLOAT_BYTES[stored_as] == width:
        return stored
    if not is_embedding:
        return computed
    # Rows are fetched and then cast; a tied head is a second copy, cast as a whole.
    return stored + (computed if dimensions.tie_word_embeddings else 0)


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
