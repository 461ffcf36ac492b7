"""llama.cpp's file types: which ggml type each tensor of a `Q4_K_M` file gets.

A file type has a default type and a few rules for the tensors that hurt most when rounded:
`attn_v`, `ffn_down`, `attn_output` and the output head. The rules here are llama.cpp's
(`llama_tensor_get_type_impl` in src/llama-quant.cpp), restated as a table. Not restated are
the rules of models that tightfit does not take: Falcon, and mixtures of exactly eight experts.

The tests hold every choice against llama.cpp's own quantizer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tightfit.errors import UsageError
from tightfit.targets.schemes.ggml_types import GgmlType as Type
from tightfit.targets.schemes.ggml_types import block_weights, fitting_type

_WIDE_GROUP = 4
"""Query heads per key-value head from which attn_v is small enough to be spoilt."""
_LAYERS_70B = 80
"""llama.cpp knows the 70B models by their depth."""
_ARCHITECTURES_70B = frozenset({"llama", "qwen2"})
_KEPT_FLOAT = ("_norm.weight", "ffn_gate_inp.weight")
"""Matrices by name that llama.cpp never quantizes: norms and routers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where a tensor stands, as far as a rule looks."""

    index: int
    """Its place among the tensors of its kind, counted from the input."""
    count: int
    query_group: int
    """Query heads that share one key-value head."""
    calibrated: bool
    """Whether an importance matrix is used."""


Rule = Callable[[Site], Type | None]
"""The type that a site gets; None: the file's default."""


def _always(kind: Type) -> Rule:
    return lambda _site: kind


def _first(n_tensors: int, kind: Type, otherwise: Type | None = None) -> Rule:
    return lambda site: kind if site.index < n_tensors else otherwise


def _first_part(divisor: int, kind: Type, otherwise: Type | None = None) -> Rule:
    return lambda site: kind if site.index < site.count // divisor else otherwise


def _more_bits(kind: Type) -> Rule:
    """The first and the last eighth of the layers, and every third between."""

    def rule(site: Site) -> Type | None:
        eighth = site.count // 8
        outer = site.index < eighth or site.index >= 7 * site.count // 8
        return kind if outer or (site.index - eighth) % 3 == 2 else None

    return rule


def _wide_group(kind: Type, otherwise: Type | None = None) -> Rule:
    return lambda site: kind if site.query_group >= _WIDE_GROUP else otherwise


def _when_calibrated(rule: Rule) -> Rule:
    return lambda site: rule(site) if site.calibrated else None


def _unless_calibrated(rule: Rule) -> Rule:
    return lambda site: None if site.calibrated else rule(site)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileType:
    """One of llama.cpp's file types."""

    name: str
    """tightfit's name: llama.cpp's in lower case."""
    default: Type
    attn_v: Rule | None = None
    ffn_down: Rule | None = None
    attn_output: Rule | None = None

    @property
    def label(self) -> str:
        """llama.cpp's name, as file names and the Hub show it."""
        return self.name.upper()


_FIRST_EIGHTH_Q5_K = _first_part(8, Type.Q5_K)
_IQ4_DOWN = _unless_calibrated(_FIRST_EIGHTH_Q5_K)

_TABLE = (
    FileType(name="f32", default=Type.F32),
    FileType(name="f16", default=Type.F16),
    FileType(name="bf16", default=Type.BF16),
    FileType(name="q8_0", default=Type.Q8_0),
    FileType(name="q6_k", default=Type.Q6_K),
    FileType(
        name="q5_k_m",
        default=Type.Q5_K,
        attn_v=_more_bits(Type.Q6_K),
        ffn_down=_more_bits(Type.Q6_K),
    ),
    FileType(name="q5_k_s", default=Type.Q5_K),
    FileType(name="q5_1", default=Type.Q5_1),
    FileType(
        name="q5_0",
        default=Type.Q5_0,
        ffn_down=_when_calibrated(_first_part(8, Type.Q5_1)),
    ),
    FileType(
        name="q4_k_m",
        default=Type.Q4_K,
        attn_v=_more_bits(Type.Q6_K),
        ffn_down=_more_bits(Type.Q6_K),
    ),
    FileType(
        name="q4_k_s",
        default=Type.Q4_K,
        attn_v=_first(4, Type.Q5_K),
        ffn_down=_FIRST_EIGHTH_Q5_K,
    ),
    FileType(name="q4_1", default=Type.Q4_1),
    FileType(
        name="q4_0",
        default=Type.Q4_0,
        ffn_down=_when_calibrated(_first_part(8, Type.Q4_1)),
    ),
    FileType(
        name="iq4_nl",
        default=Type.IQ4_NL,
        attn_v=_wide_group(Type.Q5_K),
        ffn_down=_IQ4_DOWN,
    ),
    FileType(
        name="iq4_xs",
        default=Type.IQ4_XS,
        attn_v=_wide_group(Type.Q5_K),
        ffn_down=_IQ4_DOWN,
    ),
    FileType(
        name="q3_k_l",
        default=Type.Q3_K,
        attn_v=_always(Type.Q5_K),
        ffn_down=_always(Type.Q5_K),
        attn_output=_always(Type.Q5_K),
    ),
    FileType(
        name="q3_k_m",
        default=Type.Q3_K,
        attn_v=_first(2, Type.Q5_K, Type.Q4_K),
        ffn_down=_first_part(16, Type.Q5_K, Type.Q4_K),
        attn_output=_always(Type.Q4_K),
    ),
    FileType(name="q3_k_s", default=Type.Q3_K),
    FileType(
        name="q2_k",
        default=Type.Q2_K,
        attn_v=_wide_group(Type.Q4_K, Type.Q3_K),
        ffn_down=_always(Type.Q3_K),
        attn_output=_always(Type.Q3_K),
    ),
)

FILE_TYPES: Mapping[str, FileType] = {kind.name: kind for kind in _TABLE}
"""All file types by name, largest first."""


def ggml_file_type(name: str) -> FileType:
    """The file type of that name, in any case; raises `UsageError` for an unknown one."""
    if name.lower() not in FILE_TYPES:
        raise UsageError(
            f"{name!r} is not a GGUF file type that tightfit writes",
            allowed="file types: " + ", ".join(FILE_TYPES),
            hint="--scheme auto chooses one that fits the target",
        )
    return FILE_TYPES[name.lower()]


def assign_types(
    file_type: FileType,
    shapes: Mapping[str, Sequence[int]],
    *,
    architecture: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    calibrated: bool,
) -> dict[str, Type]:
    """The ggml type of every tensor, as `llama-quantize` would choose it.

    `shapes` maps GGUF names to shapes in torch's order; a model without `output.weight` has tied
    embeddings. `calibrated` says whether an importance matrix is used. Raises `QuantizationError`
    when a width fits neither the type nor any that stands in for it.
    """
    is_70b = n_layers == _LAYERS_70B and architecture in _ARCHITECTURES_70B
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    values = sorted((name for name in shapes if _is_value(name)), key=_layer)
    value_index = {name: index for index, name in enumerate(values)}

    def wanted(name: str) -> Type:
        if name == head:
            return _head_type(file_type.default, shapes[name][-1])
        is_value = name in value_index
        site = Site(
            index=value_index[name] if is_value else _layer(name),
            count=len(values) if is_value else n_layers,
            query_group=n_heads // n_kv_heads,
            calibrated=calibrated,
        )
        rule = _rule(file_type, name)
        kind = (rule(site) if rule else None) or file_type.default
        if is_70b and is_value and kind in (Type.Q3_K, Type.Q4_K):
            # Eight query heads share each value head there: more bits for it cost next to nothing.
            return Type.Q5_K
        return kind

    def assigned(name: str) -> Type:
        if not _is_quantizable(name, shapes[name]):
            return Type.F32
        if block_weights(file_type.default) == 1:
            return file_type.default
        return fitting_type(wanted(name), shapes[name][-1])

    return {name: assigned(name) for name in shapes}


def _is_quantizable(name: str, shape: Sequence[int]) -> bool:
    return len(shape) > 1 and name.endswith("weight") and not name.endswith(_KEPT_FLOAT)


def _is_value(name: str) -> bool:
    return "attn_v.weight" in name or "attn_kv_b.weight" in name


def _rule(file_type: FileType, name: str) -> Rule | None:
    if _is_value(name):
        return file_type.attn_v
    if "ffn_down" in name:
        return file_type.ffn_down
    return file_type.attn_output if "attn_output.weight" in name else None


def _head_type(default: Type, width: int) -> Type:
    if default is Type.Q8_0 or width % block_weights(default):
        return Type.Q8_0
    return Type.Q6_K


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else 0
