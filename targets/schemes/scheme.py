"""A scheme: what every tensor of a model is stored as, from a name such as `gptq-int4-g128`.

Three kinds of names:

    q4_k_m, q6_k, f16 ...      llama.cpp's file types, a type for each tensor (GGUF; the float
                               ones in every format)
    experts-GRID, dynamic-...  schemes for a mixture of experts (GGUF): see `mixtures`
    [METHOD-]GRID[-static]     one grid on all linears and on the head; METHOD is rtn, gptq, awq or
                               awq-gptq, GRID is intB-gN, intB-channel (either with -asym), fp8,
                               fp8-tensor, fp8-channel or fp8-block128

With a grid the embedding, norms and biases are float16 in all formats, so that all of them hold the
same numbers (a GGUF stores norms and biases as F32 after that rounding); the routers of experts
stay F32. `head` and `embedding` override theirs; a tied head is the embedding. In a Hugging Face
checkpoint the head is float16 too, as is latent attention's `kv_b_proj`, and beside FP8 all of them
are bfloat16.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.logical import is_heads
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.errors import QuantizationError, UsageError
from tightfit.targets.formats import FORMATS, Format, check_storable, find_format, ggml_type
from tightfit.targets.grids import (
    FLOAT8,
    FLOAT_BYTES,
    GROUP_SIZES,
    INTEGERS,
    IntegerFacts,
    short_name,
    uniform_grid,
)
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, FileType
from tightfit.targets.schemes.ggml_types import GGML_GRIDS, block_weights
from tightfit.targets.schemes.gguf import file_type_storage
from tightfit.targets.schemes.mixtures import (
    MIXTURE_NAMES,
    MixtureScheme,
    is_mixture_name,
    parse_mixture,
)

METHODS = ("rtn", "gptq", "awq", "awq-gptq")
"""Algorithms that a scheme's name may demand."""
_UNIFORM = re.compile(r"(?:(awq-gptq|rtn|gptq|awq)-)?(.+?)(-static)?")
_PLAIN = "F16"
"""What norms, biases and, by default, the embedding are stored as beside a grid."""
_PLAIN_FLOAT8 = "BF16"
"""The same beside FP8 in a checkpoint: its kernels compute in bfloat16, as R1 itself does."""
_ROUTING = "F32"
"""What chooses experts, in every format: as llama.cpp stores it, without any rounding."""
_INSTEAD: Mapping[str, Mapping[str, str]] = {
    "onnx": {
        "2": "gptq-int2-g32",
        "3": "gptq-int4-g128",
        "4": "gptq-int4-g128",
        "5": "gptq-int4-g32",
        "6": "gptq-int8-g128",
        "8": "gptq-int8-g128",
    },
    "tensorrt": {
        "2": "gptq-int4-g128",
        "3": "gptq-int4-g128",
        "4": "gptq-int4-g128",
        "5": "gptq-int4-g64",
        "6": "gptq-int8-channel",
        "8": "gptq-int8-channel",
    },
    **{
        name: {bits: small if bits in "2345" else large for bits in "234568"}
        for name, small, large in (
            ("gptq", "gptq-int4-g128", "gptq-int8-g128"),
            ("awq", "awq-int4-g128-asym", "awq-int4-g32-asym"),
            ("compressed-tensors", "gptq-int4-g128", "gptq-int8-g128"),
            ("modelopt", "awq-int4-g128", "awq-int4-g128"),
        )
    },
}
"""By format and by the bits of a ggml type: the nearest scheme that the format holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What every tensor is stored as."""

    name: str
    """In its shortest form, lower case."""
    format: str
    method: str | None
    """The algorithm that the name demands; None: whatever `--method` says."""
    static_inputs: bool
    """FP8 with a calibrated, fixed scale for what each linear reads."""
    base: FileType | MixtureScheme | str
    """A file type of llama.cpp, a scheme for a mixture of experts, or one grid (or float type) for
    all linears."""
    head: str | None
    """Overrides the base; None: as the base says."""
    embedding: str | None

    def storage(self, architecture: Architecture, dimensions: ModelDimensions) -> dict[str, str]:
        """Grid name, `F32`, `F16` or `BF16` of every tensor by checkpoint name.

        Raises `QuantizationError` when a group size does not divide a width, and `UsageError` when
        a tied head and the embedding are asked to differ, or a scheme for a mixture of experts
        meets a model without them.
        """
        shapes = tensor_shapes(architecture, dimensions)
        self._check_quantizes()
        if isinstance(self.base, FileType):
            stored = file_type_storage(self.base, architecture, dimensions)
        elif isinstance(self.base, MixtureScheme):
            stored = self.base.storage(architecture, dimensions)
        else:
            own = FORMATS[self.format]
            stored = _uniform_storage(self.base, shapes, architecture, dimensions, own)
        stored |= self.overrides(architecture, dimensions)
        checked = set()
        for name, stored_as in stored.items():
            if (kind := (stored_as, shapes[name][-1])) not in checked:
                self._check_width(name, stored_as, shapes, stored)
                checked.add(kind)
        return stored

    def overrides(self, architecture: Architecture, dimensions: ModelDimensions) -> dict[str, str]:
        """What head and embedding are stored as, where that was asked for, by name.

        Raises `UsageError` when a tied head and the embedding are asked to differ.
        """
        head, embedding = self.head, self.embedding
        if dimensions.tie_word_embeddings:
            if head and embedding and head != embedding:
                raise UsageError(
                    f"the model's head is its embedding: it cannot be {short_name(head)} and "
                    f"{short_name(embedding)}",
                    allowed="with tied embeddings --head and --embedding are the same",
                    hint=f"give one of them: --embedding {short_name(embedding)}",
                )
            head, embedding = None, embedding or head
        given = {architecture.embedding: embedding, architecture.head: head}
        return {name: stored_as for name, stored_as in given.items() if stored_as}

    def _check_quantizes(self) -> None:
        """Refuse a float scheme where the format is one of quantized checkpoints."""
        kind = FORMATS[self.format]
        if kind.is_checkpoint and self.base in FLOAT_BYTES:
            raise UsageError(
                f"{self.name} quantizes nothing, and {kind.label} is for quantized checkpoints",
                allowed=f"{kind.label} holds exactly: {kind.allowed}",
                hint="the original checkpoint is the unquantized one",
            )

    def _check_width(
        self, name: str, stored_as: str, shapes: Mapping[str, Shape], stored: Mapping[str, str]
    ) -> None:
        """Refuse a group (or block) size that does not divide the tensor's width."""
        width = shapes[name][-1]
        group = _group_size(stored_as, self.format)
        if width % group == 0:
            return
        widths = {shapes[other][-1] for other in stored if stored[other] not in FLOAT_BYTES}
        working = [size for size in GROUP_SIZES if not any(other % size for other in widths)]
        facts = INTEGERS.get(stored_as)
        raise QuantizationError(
            f"{stored_as} cannot hold {name} of shape {shapes[name]}: its width {width} is not a "
            f"multiple of {group}",
            allowed="group sizes that divide every width of this model: "
            + (", ".join(map(str, working)) or "none"),
            hint=_other_group(facts, working, FORMATS[self.format])
            if facts
            else "choose f16 for it",
        )


def parse_scheme(
    name: str,
    *,
    format: str,  # noqa: A002 - the name of the option
    head: str | None = None,
    embedding: str | None = None,
) -> Scheme:
    """The scheme of that name, in any case, for a format.

    `head` and `embedding` are grids or float types that override the scheme's own. Raises
    `UsageError` for what does not exist or what the format cannot hold.
    """
    kind = find_format(format)
    method, base, static = _read_name(name.lower(), kind)
    parts = [method or "", short_name(base) if isinstance(base, str) else base.name]
    return Scheme(
        name="-".join(part for part in [*parts, "static" * static] if part),
        format=format,
        method=method,
        static_inputs=static,
        base=base,
        head=_override(head, "--head", kind),
        embedding=_override(embedding, "--embedding", kind),
    )


def _read_name(name: str, kind: Format) -> tuple[str | None, FileType | MixtureScheme | str, bool]:
    """The method, what the name stands for, and whether activations are static."""
    if name in FILE_TYPES and kind.name == "gguf":
        return None, FILE_TYPES[name], False
    if is_mixture_name(name):
        return None, _read_mixture(name, kind), False
    match = _UNIFORM.fullmatch(name)
    grid = uniform_grid(match[2]) if match else None
    if name.upper() in FLOAT_BYTES:
        grid = name.upper()
    elif name in FILE_TYPES:
        raise _ggml_elsewhere(FILE_TYPES[name], kind)
    if match is None or grid is None or (match[3] and grid not in FLOAT8):
        raise _unknown(name, kind)
    check_storable(kind.name, grid)
    # ModelOpt's readers know FP8 with static scales only.
    static = bool(match[3]) or (kind.name == "modelopt" and grid in FLOAT8)
    return match[1], grid, static


def _read_mixture(name: str, kind: Format) -> MixtureScheme:
    mixture = parse_mixture(name)
    if kind.name != "gguf":
        raise UsageError(
            f"{kind.label} cannot hold {mixture.name}: its grids are ggml's, which only a GGUF "
            "stores",
            allowed=f"{kind.label} holds exactly: {kind.allowed}",
            hint=f"--format gguf holds {mixture.name}",
        )
    return mixture


def _ggml_elsewhere(file_type: FileType, kind: Format) -> UsageError:
    bits = file_type.name.removeprefix("i")[1]
    return UsageError(
        f"{kind.label} cannot hold {file_type.name}: {file_type.default.name} is a grid of ggml, "
        "which only a GGUF stores",
        allowed=f"{kind.label} holds exactly: {kind.allowed}",
        hint=f"--scheme {_INSTEAD[kind.name][bits]} comes nearest in {kind.label}; --format gguf "
        f"holds {file_type.name}",
    )


def _unknown(name: str, kind: Format) -> UsageError:
    grids = [short_name(grid) for grid in (*INTEGERS, *FLOAT8) if grid in kind.storable]
    file_types = [
        text
        for text in FILE_TYPES
        if kind.name == "gguf" or (text.upper() in kind.storable and not kind.is_checkpoint)
    ]
    methods = ", ".join(f"{method}-" for method in METHODS)
    static = ", -static after fp8" if kind.storable & set(FLOAT8) else ""
    mixtures = f"; for a mixture of experts: {MIXTURE_NAMES}" if kind.name == "gguf" else ""
    return UsageError(
        f"{name!r} is not a scheme of {kind.label} that tightfit writes",
        allowed=(f"file types: {', '.join(file_types)}; " if file_types else "")
        + f"grids: {', '.join(grids)}, with {methods} before{static}{mixtures}",
        hint="--scheme auto chooses one that fits the target",
    )


def _override(text: str | None, option: str, kind: Format) -> str | None:
    """The grid or float type that an override names."""
    if text is None:
        return None
    upper = text.upper()
    grid = upper if upper in FLOAT_BYTES or upper in GGML_GRIDS else uniform_grid(text)
    if grid is None:
        raise UsageError(
            f"{option} {text} is not a grid",
            allowed=f"{kind.label} holds: {kind.allowed}",
            hint=f"e.g. {option} f16",
        )
    check_storable(kind.name, grid)
    if kind.is_checkpoint and grid not in FLOAT_BYTES:
        raise UsageError(
            f"{option} {text}: head and embedding stay floats in {kind.label}",
            allowed=f"{option} with f16, bf16 or f32",
            hint=f"leave {option} out",
        )
    return grid


def _uniform_storage(
    grid: str,
    shapes: Mapping[str, Shape],
    architecture: Architecture,
    dimensions: ModelDimensions,
    format_: Format,
) -> dict[str, str]:
    """One grid on all linears and the head; in checkpoints on what vLLM's kernels multiply."""
    kinds = [architecture.block_kind(layer, dimensions) for layer in range(dimensions.n_layers)]
    routing = {
        architecture.tensor(layer, parameter)
        for layer, kind in enumerate(kinds)
        for parameter in kind.routing
    }
    if grid in FLOAT_BYTES:
        # bfloat16 keeps norms and biases exact as llama.cpp's file type does.
        plain = "F32" if grid == "BF16" else grid
        return {
            name: plain if len(shape) == 1 or name in routing else grid
            for name, shape in shapes.items()
        }
    on_grid = {
        architecture.tensor(layer, f"{linear}.weight")
        for layer, kind in enumerate(kinds)
        for linear in kind.linears
    }
    plain = _PLAIN
    if format_.is_checkpoint:
        # The halves of latent attention's kv_b_proj are one matrix there.
        on_grid = {name for name in on_grid if not is_heads(name)}
        plain = _PLAIN_FLOAT8 if grid in FLOAT8 else _PLAIN
    else:
        on_grid.add(architecture.head)
    beside = {name: _ROUTING if name in routing else plain for name in shapes}
    return beside | {name: grid for name in shapes if name in on_grid}


def _group_size(stored_as: str, format_name: str) -> int:
    """Columns that a row must be a multiple of."""
    in_file = block_weights(ggml_type(stored_as)) if format_name == "gguf" else 1
    facts = INTEGERS.get(stored_as)
    return max(in_file, facts.group_size if facts else 1)


def _other_group(facts: IntegerFacts, working: list[int], kind: Format) -> str:
    """A grid of the same kind that would do."""
    ways = [
        IntegerFacts(bits=facts.bits, group_size=size, symmetric=facts.symmetric).name
        for size in (*reversed(working), 0)
    ]
    held = [short_name(grid) for grid in ways if grid in kind.storable]
    if not held:
        return f"no grid of {facts.bits} bits fits this model in {kind.label}"
    return f"choose {' or '.join(held)}"
