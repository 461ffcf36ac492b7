"""The schemes of a model on a target: bytes, bits, longest context, and whether it fits."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Type

from tightfit.calib.architecture import Architecture, architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import Shape, count_parameters, tensor_shapes
from tightfit.errors import QuantizationError, UsageError
from tightfit.targets.formats import Format, executed_as, ggml_type
from tightfit.targets.graph_memory import graph_memory_use, graph_weights_bytes
from tightfit.targets.memory import (
    CONTEXT_STEP_TOKENS,
    MemoryUse,
    memory_use,
    resident_weights_bytes,
)
from tightfit.targets.onnx_data import GraphKind, data_bytes, weight_sizes
from tightfit.targets.profile import Target
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES
from tightfit.targets.schemes.ggml_types import stored_bytes, tensor_bytes
from tightfit.targets.schemes.gguf import gguf_shapes
from tightfit.targets.schemes.scheme import Scheme, parse_scheme

LISTED: Mapping[str, tuple[str, ...]] = {
    "gguf": tuple(FILE_TYPES),
    "onnx": (
        *("f32", "bf16", "f16", "int8-g32", "int8-g64", "int8-g128", "fp8-channel"),
        *("int4-g32", "int4-g64", "int4-g128"),
    ),
    "tensorrt": ("f16", "int8-channel", "fp8-channel", "int4-g64", "int4-g128"),
}
"""By format: the schemes that a plan weighs beside the one asked for."""
_BITS_PER_BYTE = 8
_NOT_IN_FLOAT16 = frozenset({"F32", "BF16"})
"""Float types whose numbers float16 does not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What schemes are judged for."""

    dimensions: ModelDimensions
    target: Target
    format: Format
    precision: str | None
    """What a graph computes in: `float16` or `float32`; None for a GGUF."""
    context_tokens: int

    @property
    def architecture(self) -> Architecture:
        """The model's family."""
        return architecture_of(self.dimensions.model_type)

    @property
    def graph(self) -> GraphKind:
        """As far as bytes depend on it."""
        assert self.precision is not None, "a GGUF is no graph"
        return GraphKind(precision=self.precision, own_operators=self.format.name == "onnx")


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


def usual_precision(kind: Format, target: Target) -> str | None:
    """What a graph for the target computes in unless told otherwise; None for a GGUF."""
    if kind.name == "gguf":
        return None
    return "float16" if target.kind == "gpu" else "float32"


def parse_schemes(
    names: Iterable[str], kind: Format, head: str | None = None, embedding: str | None = None
) -> list[Scheme]:
    """The schemes of these names, all with the same overrides."""
    return [parse_scheme(name, format=kind.name, head=head, embedding=embedding) for name in names]


def list_candidates(setting: Setting, schemes: Iterable[Scheme]) -> tuple[Candidate, ...]:
    """Those of the schemes that the model's widths allow and the target executes, largest first."""
    return tuple(sorted(_possible(setting, schemes), key=lambda candidate: -candidate.file_bytes))


def check_scheme(setting: Setting, scheme: Scheme) -> dict[str, str]:
    """The storage of a scheme that the target executes.

    Raises `UsageError` when it does not, or when a float16 graph would round what is stored, and
    `QuantizationError` when a width does not fit.
    """
    storage = scheme.storage(setting.architecture, setting.dimensions)
    used = set(storage.values())
    for stored_as in sorted(used):
        setting.target.check_grid(
            setting.format.runtime, executed_as(setting.format.name, stored_as)
        )
    rounded = used & _NOT_IN_FLOAT16
    if setting.precision == "float16" and rounded:
        raise UsageError(
            f"{scheme.name}: a float16 graph cannot compute with the numbers of "
            f"{' and '.join(sorted(rounded))} as they are",
            allowed="float16 graphs hold F16 and quantized tensors",
            hint="--onnx-precision float32 makes a graph that keeps them; --scheme f16 rounds them",
        )
    return storage


def evaluate(setting: Setting, scheme: Scheme, storage: Mapping[str, str]) -> Candidate:
    """The figures of a scheme that stores the model so."""
    shapes = tensor_shapes(setting.architecture, setting.dimensions)
    sized = _size_gguf if setting.format.name == "gguf" else _size_graph
    file_bytes, n_bytes, use = sized(setting, shapes, storage)

    def exceeds(step: int) -> bool:
        return use(step * CONTEXT_STEP_TOKENS).total_bytes > setting.target.available_bytes

    limit = setting.dimensions.max_position_embeddings
    steps = range(1, math.ceil(limit / CONTEXT_STEP_TOKENS) + 1)
    n_fitting = bisect_left(steps, True, key=exceeds)
    memory = use(setting.context_tokens)
    return Candidate(
        scheme=scheme.name,
        file_bytes=file_bytes,
        bits_per_weight=n_bytes * _BITS_PER_BYTE / count_parameters(shapes),
        memory=memory,
        max_context_tokens=min(n_fitting * CONTEXT_STEP_TOKENS, limit),
        fits=memory.total_bytes <= setting.target.available_bytes,
    )


def _possible(setting: Setting, schemes: Iterable[Scheme]) -> Iterator[Candidate]:
    for scheme in schemes:
        try:
            storage = check_scheme(setting, scheme)
        except (UsageError, QuantizationError):
            continue  # whoever asks for this one by name is told why
        yield evaluate(setting, scheme, storage)


_Sized = tuple[int, int, Callable[[int], MemoryUse]]
"""Bytes of the file, bytes of its weights alone, and the memory by context."""


def _size_gguf(setting: Setting, shapes: Mapping[str, Shape], storage: Mapping[str, str]) -> _Sized:
    dimensions, target = setting.dimensions, setting.target
    names = setting.architecture.gguf_names(dimensions.n_layers)
    types = {
        # Vectors are F32 in every GGUF; so is what the file adds (rope's divisors).
        names[name]: Type.F32 if len(shape) == 1 else ggml_type(storage[name])
        for name, shape in shapes.items()
    }
    in_file = gguf_shapes(setting.architecture, dimensions)
    types |= dict.fromkeys(in_file.keys() - types.keys(), Type.F32)
    parts = [(types[name], shape) for name, shape in in_file.items()]
    weights_bytes = resident_weights_bytes(in_file, types, target)
    return (
        stored_bytes(parts),
        sum(tensor_bytes(kind, shape) for kind, shape in parts),
        lambda context: memory_use(dimensions, weights_bytes, target, context),
    )


def _size_graph(
    setting: Setting, shapes: Mapping[str, Shape], storage: Mapping[str, str]
) -> _Sized:
    dimensions, kind = setting.dimensions, setting.graph
    sizes = [
        size for name, shape in shapes.items() for size in weight_sizes(storage[name], shape, kind)
    ]
    weights_bytes = graph_weights_bytes(
        dimensions, shapes, storage, kind, setting.architecture.embedding
    )

    def use(context_tokens: int) -> MemoryUse:
        return graph_memory_use(
            dimensions,
            setting.target,
            kind,
            weights_bytes=weights_bytes,
            context_tokens=context_tokens,
        )

    return data_bytes(sizes), sum(sizes), use
