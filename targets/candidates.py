"""The schemes of a model on a target: bytes, bits, memory, longest context, loss and speed."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tightfit.calib.shapes import count_parameters
from tightfit.errors import QuantizationError, UsageError
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.checkpoint_memory import checkpoint_memory_use, place_shards
from tightfit.targets.formats import Format, executed_as
from tightfit.targets.graph_memory import graph_memory_use
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.targets.llamacpp_compute import CONTEXT_STEP_TOKENS
from tightfit.targets.llamacpp_memory import memory_use, place_weights
from tightfit.targets.memory_use import MemoryUse
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES
from tightfit.targets.schemes.mixtures import LISTED_MIXTURES
from tightfit.targets.schemes.scheme import Scheme, parse_scheme
from tightfit.targets.setting import Setting
from tightfit.targets.sizes import ModelSizes
from tightfit.targets.workload import Split

LISTED: Mapping[str, tuple[str, ...]] = {
    "gguf": (*FILE_TYPES, *LISTED_MIXTURES),
    "onnx": (
        *("f32", "bf16", "f16", "int8-g32", "int8-g64", "int8-g128", "fp8-channel"),
        *("int4-g32", "int4-g64", "int4-g128"),
    ),
    "tensorrt": ("f16", "int8-channel", "fp8-channel", "int4-g64", "int4-g128"),
    "gptq": ("int8-g128", "int8-channel", "int4-g32", "int4-g64", "int4-g128"),
    "awq": ("int4-g32-asym", "int4-g64-asym", "int4-g128-asym"),
    "compressed-tensors": (
        *("fp8-block128", "fp8-channel", "int8-g128", "int8-channel"),
        *("int4-g32", "int4-g64", "int4-g128"),
    ),
    "modelopt": ("fp8-tensor", "int4-g128"),
}
"""By format: the schemes that a plan weighs beside the one asked for, where the model has what they
are for."""
_BITS_PER_BYTE = 8
_BYTES_PER_GB = 10**9
_NOT_IN_FLOAT16 = frozenset({"F32", "BF16"})
"""Float types whose numbers float16 does not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One scheme of the model on the target."""

    scheme: str
    file_bytes: int
    """Tensor data of the file; a GGUF's metadata, mostly the tokenizer, comes on top (a few MB)."""
    bits_per_weight: float
    """Over all tensors."""
    memory: MemoryUse
    """At the plan's context."""
    max_context_tokens: int
    """Longest context that fits, at most the model's own; 0 when not even a short one does."""
    fits: bool
    predicted_nats: float
    """Predicted mean KL divergence per token from the unquantized model."""
    max_tokens_per_s: float
    """Bound on the decoding speed of one sequence at the plan's context: memory bandwidth over the
    bytes of weights and KV cache that a token reads. No runtime reaches it."""


def parse_schemes(
    names: Iterable[str], kind: Format, head: str | None = None, embedding: str | None = None
) -> list[Scheme]:
    """The schemes of these names, all with the same overrides."""
    return [parse_scheme(name, format=kind.name, head=head, embedding=embedding) for name in names]


def list_candidates(
    sizes: ModelSizes, schemes: Iterable[Scheme], sensitivity: Sensitivity
) -> tuple[Candidate, ...]:
    """Those of the schemes that the model's widths allow and the target executes, largest first."""
    possible = _possible(sizes, schemes, sensitivity)
    return tuple(sorted(possible, key=lambda candidate: -candidate.file_bytes))


def check_scheme(setting: Setting, scheme: Scheme) -> dict[str, str]:
    """The storage of a scheme that the target executes.

    Raises `UsageError` when it does not, or when a float16 graph would round what is stored, and
    `QuantizationError` when a width does not fit.
    """
    storage = scheme.storage(setting.architecture, setting.dimensions)
    check_executed(setting, scheme.name, storage)
    return storage


def check_executed(setting: Setting, scheme: str, storage: Mapping[str, str]) -> None:
    """Raise `UsageError` when the target does not execute what is stored so."""
    used = set(storage.values())
    if setting.format.is_checkpoint:
        # Floats compute in whatever type the runtime is given; routers are float32 in all.
        used -= FLOAT_BYTES.keys()
    for stored_as in sorted(used):
        setting.target.check_grid(
            setting.format.runtime, executed_as(setting.format.name, stored_as)
        )
    rounded = used & _NOT_IN_FLOAT16
    if setting.precision == "float16" and rounded:
        raise UsageError(
            f"{scheme}: a float16 graph cannot compute with the numbers of "
            f"{' and '.join(sorted(rounded))} as they are",
            allowed="float16 graphs hold F16 and quantized tensors",
            hint="--onnx-precision float32 makes a graph that keeps them; --scheme f16 rounds them",
        )


def evaluate(
    sizes: ModelSizes, scheme: str, storage: Mapping[str, str], sensitivity: Sensitivity
) -> Candidate:
    """The figures of a scheme that stores the model so."""
    placed = placed_weights(sizes, storage)
    memory = _memory(sizes.setting, placed)
    n_bits = sizes.data_bytes(storage) * _BITS_PER_BYTE
    return Candidate(
        scheme=scheme,
        file_bytes=sizes.file_bytes(storage),
        bits_per_weight=n_bits / count_parameters(sizes.shapes),
        memory=memory,
        max_context_tokens=_longest_context(sizes.setting, placed),
        fits=_fits(sizes.setting, memory),
        predicted_nats=sensitivity.loss_nats(storage),
        max_tokens_per_s=_speed_bound(sizes, storage, memory),
    )


def fits(sizes: ModelSizes, storage: Mapping[str, str]) -> bool:
    """Whether a model that is stored so fits the setting's target."""
    return _fits(sizes.setting, _memory(sizes.setting, placed_weights(sizes, storage)))


def longest_context(sizes: ModelSizes, storage: Mapping[str, str]) -> int:
    """Tokens of the longest context that fits, at most the model's limit; 0: none does."""
    return _longest_context(sizes.setting, placed_weights(sizes, storage))


def memory_beside_weights(setting: Setting) -> MemoryUse:
    """What everything but the weights takes."""
    return _memory(setting, (0,) * setting.n_devices)


def placed_weights(sizes: ModelSizes, storage: Mapping[str, str]) -> tuple[int, ...]:
    """Bytes of weights on each device, of the tensors that are stored so."""
    setting = sizes.setting
    if setting.format.is_checkpoint:
        return place_shards(sizes.resident(storage), sizes.shapes, setting.n_devices)
    return place_weights(
        sizes.resident(storage),
        setting.dimensions.n_layers,
        setting.n_devices,
        setting.workload.split,
    )


def _longest_context(setting: Setting, placed: tuple[int, ...]) -> int:
    """In tokens, at most the model's limit; 0: not even a short one fits."""
    limit = setting.dimensions.max_position_embeddings
    steps = range(1, math.ceil(limit / CONTEXT_STEP_TOKENS) + 1)

    def exceeds(step: int) -> bool:
        there = setting.at(step * CONTEXT_STEP_TOKENS)
        return not _fits(there, _memory(there, placed))

    return min(bisect_left(steps, True, key=exceeds) * CONTEXT_STEP_TOKENS, limit)


def _fits(setting: Setting, memory: MemoryUse) -> bool:
    return memory.fullest_bytes <= setting.target.device_available_bytes


def _memory(setting: Setting, placed: tuple[int, ...]) -> MemoryUse:
    if setting.format.name == "gguf":
        return memory_use(setting.dimensions, placed, setting.target, setting.workload)
    if setting.format.is_checkpoint:
        return checkpoint_memory_use(
            setting.dimensions, placed, setting.target, setting.workload, setting.format.name
        )
    return graph_memory_use(
        setting.dimensions,
        setting.target,
        setting.graph,
        weights_bytes=sum(placed),
        workload=setting.workload,
    )


def _speed_bound(sizes: ModelSizes, storage: Mapping[str, str], memory: MemoryUse) -> float:
    """Tokens a second of one sequence that bandwidth alone would allow."""
    setting = sizes.setting
    # TensorRT holds the cache of the step before as well, and reads one of the two.
    n_copies = 2 if setting.format.name == "tensorrt" else 1
    cache_bytes = memory.kv_cache_bytes / setting.workload.n_sequences / n_copies
    # A layer split has one device at work at a time, a tensor split all of them.
    split_by_tensors = setting.format.is_checkpoint or setting.workload.split is Split.TENSOR
    n_at_once = setting.n_devices if split_by_tensors else 1
    bytes_per_s = setting.target.bandwidth_gb_s * _BYTES_PER_GB * n_at_once
    return bytes_per_s / (sizes.read_bytes(storage) + cache_bytes)


def _possible(
    sizes: ModelSizes, schemes: Iterable[Scheme], sensitivity: Sensitivity
) -> Iterator[Candidate]:
    for scheme in schemes:
        try:
            storage = check_scheme(sizes.setting, scheme)
        except (UsageError, QuantizationError):
            continue  # whoever asks for this one by name is told why
        yield evaluate(sizes, scheme.name, storage, sensitivity)
