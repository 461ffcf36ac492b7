"""What a GGUF needs in memory under llama.cpp.

    total = weights + KV cache + compute buffers + runtime overhead        on each device

Weights   exact: the bytes of every tensor in its scheme's type. On a discrete GPU llama.cpp leaves
          the token table in host memory unless it is also the head (its log: "CPU buffer size").
KV cache  exact. A token takes in each layer

              2 (keys and values) * kv_heads * head_dim     grouped-query attention
              kv_lora_rank + qk_rope_head_dim               latent attention (no values are kept)

          numbers of 2 bytes (F16) or 34/32 (Q8_0); every sequence has a context of its own, rounded
          up to a multiple of 256 as `llama_init_from_model` does.
Compute   `llamacpp_compute`.
Runtime   a constant of the target: CUDA context and cuBLAS workspace, or the process itself.

Several devices. A layer split gives layer i of L, and the head as layer L, to device
floor(i n / (L + 1)) of n equal ones (`llama_model::load_tensors`); keys and values lie with their
layer. A tensor split gives each device an equal part of every matrix and of the key-value heads;
vectors are on all of them. llama.cpp cuts at whole heads and super-blocks, and gives what is left
over to another device in each layer, so that parts are equal over all layers but for one head.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache

from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.targets.llamacpp_compute import compute_bytes, padded_context
from tightfit.targets.memory_use import DeviceUse, MemoryUse
from tightfit.targets.profile import Target
from tightfit.targets.workload import CacheType, Split, Workload

MAX_SPLIT_DEVICES = 15
"""Devices of a layer split: with the CPU they are `GGML_SCHED_MAX_BACKENDS`, which is 16."""
_CACHE_BYTES = {CacheType.F16: Fraction(2), CacheType.Q8_0: Fraction(34, 32)}
"""Bytes of one cached number."""
_KEYS_AND_VALUES = 2
_TOKEN_TABLE = "token_embd.weight"
_HEAD = "output.weight"
_OUTPUT = (_HEAD, "output_norm.weight", _TOKEN_TABLE)
"""They lie on the device of the head; so does a token table, which is there only as a head."""


def memory_use(
    dimensions: ModelDimensions,
    device_weights: tuple[int, ...],
    target: Target,
    workload: Workload,
) -> MemoryUse:
    """Memory of a GGUF whose weights take `device_weights` bytes on each device.

    Raises `UsageError` for a cache type that llama.cpp does not have, and for a tensor split of a
    model with latent attention.
    """
    n_devices = len(device_weights)
    if workload.split is Split.TENSOR and n_devices > 1 and dimensions.mla is not None:
        raise UsageError(
            "llama.cpp has no tensor split for models with latent attention (deepseek2)",
            allowed="--split layer for the full R1 models",
            hint="vLLM and TensorRT-LLM split their matrices over devices",
        )
    cached = _cached_bytes(dimensions, workload, n_devices)
    compute = compute_bytes(dimensions, workload, target, n_devices)
    return MemoryUse(
        devices=tuple(
            DeviceUse(
                weights_bytes=weights,
                kv_cache_bytes=cached[device],
                compute_bytes=compute[device],
                runtime_bytes=target.device_overhead_bytes,
            )
            for device, weights in enumerate(device_weights)
        )
    )


def host_tensors(names: Iterable[str], target: Target) -> frozenset[str]:
    """GGUF names of what stays in host memory on the target."""
    discrete = target.kind == "gpu" and not target.unified_memory
    return frozenset({_TOKEN_TABLE}) if discrete and _HEAD in set(names) else frozenset()


def place_weights(
    tensors: Mapping[str, int], n_layers: int, n_devices: int, split: Split
) -> tuple[int, ...]:
    """Bytes of weights on each device, from the bytes of every tensor by GGUF name."""
    if n_devices == 1:
        return (sum(tensors.values()),)
    if split is Split.TENSOR:
        # The few vectors are on all devices; rounding up counts the odd row.
        each = sum(
            n_bytes if _is_vector(name) else -(-n_bytes // n_devices)
            for name, n_bytes in tensors.items()
        )
        return (each,) * n_devices
    placed = [0] * n_devices
    for name, n_bytes in tensors.items():
        placed[device_of(name, n_layers, n_devices)] += n_bytes
    return tuple(placed)


def device_of(name: str, n_layers: int, n_devices: int) -> int:
    """Device of a layer split over `n_devices` equal ones that a tensor (its GGUF name) lies on."""
    if name.startswith("blk."):
        layer = int(name.split(".", 2)[1])
    else:
        layer = n_layers if name in _OUTPUT else 0
    return layer * n_devices // (n_layers + 1)


def kv_cache_bytes(dimensions: ModelDimensions, workload: Workload) -> int:
    """Bytes of the KV cache over all layers, on one device.

    Raises `UsageError` for a cache type that llama.cpp does not have.
    """
    return dimensions.n_layers * _layer_cache_bytes(dimensions, workload)


def _layer_cache_bytes(dimensions: ModelDimensions, workload: Workload) -> int:
    if workload.cache_type not in _CACHE_BYTES:
        raise UsageError(
            f"llama.cpp has no KV cache of {workload.cache_type}",
            allowed=f"--kv-cache {' or '.join(_CACHE_BYTES)} for a GGUF",
            hint="q8_0 takes about as little; FP8 caches are those of vLLM and TensorRT-LLM",
        )
    if dimensions.mla is not None:
        width = dimensions.mla.kv_lora_rank + dimensions.mla.qk_rope_head_dim
    else:
        width = _KEYS_AND_VALUES * dimensions.kv_width
    cells = workload.n_sequences * padded_context(workload.context_tokens)
    return int(width * cells * _CACHE_BYTES[workload.cache_type])


def _cached_bytes(
    dimensions: ModelDimensions, workload: Workload, n_devices: int
) -> tuple[int, ...]:
    layer_bytes = _layer_cache_bytes(dimensions, workload)
    if workload.split is Split.LAYER and n_devices > 1:
        counts = _layer_counts(dimensions.n_layers, n_devices)
        return tuple(count * layer_bytes for count in counts)
    n_heads = dimensions.n_layers * dimensions.n_kv_heads
    n_there = -(-n_heads // n_devices)  # a head is on one device, and some hold one more
    return (layer_bytes * n_there // dimensions.n_kv_heads,) * n_devices


@cache
def _layer_counts(n_layers: int, n_devices: int) -> tuple[int, ...]:
    """Decoder blocks on each device of a layer split."""
    devices = [layer * n_devices // (n_layers + 1) for layer in range(n_layers)]
    return tuple(devices.count(device) for device in range(n_devices))


def _is_vector(name: str) -> bool:
    return name.endswith((".bias", "_norm.weight", "rope_freqs.weight"))
