"""What a Hugging Face checkpoint needs in memory in vLLM or TensorRT-LLM: an estimate.

    total = weights + KV cache + compute buffers + runtime overhead            on each of N devices

The model is split by tensors: N is the largest power of two that the target has devices for and
that divides the attention heads.

Weights   matrices, embedding and head in N parts; vectors and routers on every device.
KV cache  2 (keys and values) * layers * (kv_heads / N, at least 1) * head_dim * e for each token;
          of latent attention layers * (kv_lora_rank + rope) * e on every device. e is 2 bytes, and
          1 in FP8. vLLM gives the cache all that is left; this is what the workload needs.
Compute   the profiling run at start: t = 2048 tokens at a time through the widest layer,
          2 t (3 intermediate / N + 4 hidden) bytes, and float32 logits of 256 sequences.
Runtime   a constant of the target. CUDA graphs (vLLM: some 0.3 to 1 GiB) are not counted:
          `--enforce-eager` does without.

Sources: vLLM, `GPUModelRunner.profile_run`, `SchedulerConfig` (`max_num_batched_tokens` 2048,
`max_num_seqs` 256), `divide` in `distributed/utils`, `QKVParallelLinear` (replicated KV heads).
Nothing of this is measured: no GPU was there.
"""

from collections.abc import Mapping
from math import prod

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import Shape
from tightfit.errors import UsageError
from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS
from tightfit.targets.memory_use import DeviceUse, MemoryUse
from tightfit.targets.profile import Target
from tightfit.targets.workload import CacheType, Workload

_BATCHED_TOKENS = 2048
_LOGITS_SEQUENCES = 256
_HALF_BYTES, _FLOAT_BYTES = 2, 4
_BITS_PER_BYTE = 8
_INDEX_BYTES = 4
"""GPTQ's `g_idx`, of one column."""
_CACHE_BYTES: Mapping[CacheType, int] = {CacheType.F16: 2, CacheType.FP8: 1}
_KEYS_AND_VALUES = 2
_FP8_FORMATS = ("compressed-tensors", "modelopt")
"""Formats that have a place for the scales of an FP8 cache."""


def tensor_parallel_devices(n_heads: int, n_devices: int) -> int:
    """How many devices share a model."""
    count = 1
    while 2 * count <= n_devices and n_heads % (2 * count) == 0:
        count *= 2
    return count


def stored_bytes(stored_as: str, shape: Shape, format_name: str) -> int:
    """Bytes of one tensor in the files, scales and zero points included."""
    n_weights = prod(shape)
    if stored_as in FLOAT_BYTES:
        return n_weights * FLOAT_BYTES[stored_as]
    # Of a stack, its matrices one below the other.
    n_rows, width = n_weights // shape[-1], shape[-1]
    if stored_as in FLOAT8:
        facts = FLOAT8[stored_as]
        columns = -(-width // facts.block_columns) if facts.block_columns else 1
        rows = -(-n_rows // facts.block_columns) if facts.block_columns else n_rows
        return n_weights + _FLOAT_BYTES * (rows * columns if facts.scale_per_row else 1)
    integer = INTEGERS[stored_as]
    n_groups = n_rows * integer.n_groups(width)
    has_zeros = not integer.symmetric or format_name in ("gptq", "awq")
    n_bits = n_weights * integer.bits + n_groups * integer.bits * has_zeros
    index_bytes = _INDEX_BYTES * width * (format_name == "gptq")
    return n_bits // _BITS_PER_BYTE + n_groups * _HALF_BYTES + index_bytes


def place_shards(
    tensors: Mapping[str, int], shapes: Mapping[str, Shape], n_devices: int
) -> tuple[int, ...]:
    """Bytes of weights on each device."""
    each = sum(
        n_bytes if len(shapes[name]) == 1 else -(-n_bytes // n_devices)
        for name, n_bytes in tensors.items()
    )
    return (each,) * n_devices


def checkpoint_memory_use(
    dimensions: ModelDimensions,
    placed: tuple[int, ...],
    target: Target,
    workload: Workload,
    format_name: str,
) -> MemoryUse:
    """Memory on each device; raises `UsageError` for a cache that the format or target lacks."""
    _check_cache(dimensions, target, workload.cache_type, format_name)
    n_devices = len(placed)
    element_bytes = _CACHE_BYTES[workload.cache_type]
    if dimensions.mla is not None:
        width = dimensions.mla.kv_lora_rank + dimensions.mla.qk_rope_head_dim
    else:
        n_kv_heads = max(1, dimensions.n_kv_heads // n_devices)
        width = _KEYS_AND_VALUES * n_kv_heads * dimensions.head_dim
    cached_tokens = workload.context_tokens * workload.n_sequences
    widest = 3 * dimensions.intermediate_size // n_devices + 4 * dimensions.hidden_size
    compute_bytes = (
        _HALF_BYTES * _BATCHED_TOKENS * widest
        + _FLOAT_BYTES * _LOGITS_SEQUENCES * dimensions.vocab_size
    )
    return MemoryUse(
        devices=tuple(
            DeviceUse(
                weights_bytes=weights_bytes,
                kv_cache_bytes=dimensions.n_layers * width * element_bytes * cached_tokens,
                compute_bytes=compute_bytes,
                runtime_bytes=target.device_overhead_bytes,
            )
            for weights_bytes in placed
        )
    )


def _check_cache(
    dimensions: ModelDimensions, target: Target, cache_type: CacheType, format_name: str
) -> None:
    if cache_type is CacheType.F16:
        return
    if cache_type is not CacheType.FP8 or format_name not in _FP8_FORMATS:
        raise UsageError(
            f"{format_name} has no KV cache of {cache_type}",
            allowed=f"--kv-cache f16; fp8 with {' or '.join(_FP8_FORMATS)}",
            hint="leave --kv-cache out",
        )
    if dimensions.mla is not None:
        raise UsageError(
            "the cache of latent attention has no FP8 scales that tightfit measures",
            allowed="--kv-cache fp8 for the distilled checkpoints",
            hint="leave --kv-cache out",
        )
    if not target.executes(_runtime(format_name), "fp8-e4m3-tensor"):
        raise UsageError(
            f"{target.name} has no FP8 arithmetic for a KV cache",
            allowed="--kv-cache fp8 on cards from compute capability 8.9",
            hint="leave --kv-cache out",
        )


def _runtime(format_name: str) -> str:
    return "tensorrt-llm" if format_name == "modelopt" else "vllm"
