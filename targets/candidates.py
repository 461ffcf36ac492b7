"""The schemes of a model on a target: bytes, bits, longest context, and whether it fits."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import tensor_shapes
from tightfit.targets.memory import (
    CONTEXT_STEP_TOKENS,
    MemoryUse,
    memory_use,
    resident_weights_bytes,
)
from tightfit.targets.profile import Target
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, assign_types, ggml_file_type
from tightfit.targets.schemes.ggml_types import stored_bytes, tensor_bytes

RUNTIME = "llama.cpp"
"""What executes the GGUF schemes."""
_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One scheme of the model on the target."""

    scheme: str
    file_bytes: int
    """Tensor data of the GGUF; its metadata, mostly the tokenizer, comes on top (a few MB)."""
    bits_per_weight: float
    """Over all tensors."""
    memory: MemoryUse
    """At the plan's context."""
    max_context_tokens: int
    """Longest context that fits, at most the model's own; 0 when not even a short one does."""
    fits: bool


def list_candidates(
    architecture: Architecture,
    dimensions: ModelDimensions,
    target: Target,
    context_tokens: int,
    schemes: Iterable[str] = FILE_TYPES,
) -> tuple[Candidate, ...]:
    """The schemes that the target executes, largest first."""
    shapes = gguf_shapes(architecture, dimensions)
    candidates = []
    for scheme in schemes:
        types = scheme_types(scheme, shapes, architecture, dimensions)
        if all(target.executes(RUNTIME, kind.name) for kind in set(types.values())):
            candidates.append(_candidate(scheme, shapes, types, dimensions, target, context_tokens))
    return tuple(sorted(candidates, key=lambda candidate: -candidate.file_bytes))


def gguf_shapes(
    architecture: Architecture, dimensions: ModelDimensions
) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by GGUF name, rows before columns."""
    names = architecture.gguf_names(dimensions.n_layers)
    parameters = tensor_shapes(architecture, dimensions)
    shapes: dict[str, tuple[int, ...]] = {names[name]: size for name, size in parameters.items()}
    scaling = dimensions.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        shapes["rope_freqs.weight"] = (dimensions.head_dim // 2,)
    return shapes


def scheme_types(
    scheme: str,
    shapes: Mapping[str, Sequence[int]],
    architecture: Architecture,
    dimensions: ModelDimensions,
) -> dict[str, GGMLQuantizationType]:
    """The ggml type of every tensor, as `export` will assign them (it always calibrates)."""
    return assign_types(
        ggml_file_type(scheme),
        shapes,
        architecture=architecture.gguf_arch,
        n_layers=dimensions.n_layers,
        n_heads=dimensions.n_heads,
        n_kv_heads=dimensions.n_kv_heads,
        calibrated=True,
    )


def _candidate(
    scheme: str,
    shapes: Mapping[str, Sequence[int]],
    types: Mapping[str, GGMLQuantizationType],
    dimensions: ModelDimensions,
    target: Target,
    context_tokens: int,
) -> Candidate:
    weights_bytes = resident_weights_bytes(shapes, types, target)

    def use(context: int) -> MemoryUse:
        return memory_use(dimensions, weights_bytes, target, context)

    def exceeds(step: int) -> bool:
        return use(step * CONTEXT_STEP_TOKENS).total_bytes > target.available_bytes

    limit = dimensions.max_position_embeddings
    steps = range(1, math.ceil(limit / CONTEXT_STEP_TOKENS) + 1)
    n_fitting = bisect_left(steps, True, key=exceeds)
    data_bytes = sum(tensor_bytes(types[name], shape) for name, shape in shapes.items())
    n_weights = sum(math.prod(shape) for shape in shapes.values())
    memory = use(context_tokens)
    return Candidate(
        scheme=scheme,
        file_bytes=stored_bytes((types[name], shape) for name, shape in shapes.items()),
        bits_per_weight=data_bytes * _BITS_PER_BYTE / n_weights,
        memory=memory,
        max_context_tokens=min(n_fitting * CONTEXT_STEP_TOKENS, limit),
        fits=memory.total_bytes <= target.available_bytes,
    )
