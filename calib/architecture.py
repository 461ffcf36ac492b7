"""What a model family looks like: data that the walk, the algorithms and the writers share.

An architecture names its linears by their module path inside a decoder block, says which of them
read the same input (and so share one Hessian), where an AWQ scale may be folded, and what every
tensor is called in GGUF. It is data: a new family is a new table, not a subclass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tightfit.errors import CheckpointError


class FoldKind(StrEnum):
    """How the inverse of an input scale is absorbed by what produces that input."""

    NORM = "norm"
    """The weight of the norm before is divided channel by channel."""
    LINEAR = "linear"
    """The rows (and bias) of the linear before are divided."""
    GROUPED_VALUE = "grouped-value"
    """The rows of v_proj, each feeding several heads: the scale is shared by a query group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A distinct activation that one or more linears of a block read."""

    name: str
    """E.g. `attn_in`."""
    linears: tuple[str, ...]
    """Module paths inside the block, e.g. `self_attn.q_proj`; the first one is hooked."""
    fold_kind: FoldKind | None = None
    """How an AWQ scale is absorbed; None: nowhere."""
    fold_into: str = ""
    """Module path that absorbs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockKind:
    """One kind of decoder block (dense, or mixture of experts)."""

    inputs: tuple[Input, ...]
    gguf_names: Mapping[str, str]
    """Parameter path inside the block to GGUF name inside `blk.N.`, both with their suffix:
    `self_attn.q_proj.weight` -> `attn_q.weight`."""
    optional: frozenset[str] = frozenset()
    """Parameters that a checkpoint of the family may lack (biases)."""

    @property
    def linears(self) -> tuple[str, ...]:
        """Module paths of all linears, in the order of their inputs."""
        return tuple(linear for source in self.inputs for linear in source.linears)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A model family."""

    model_type: str
    """`model_type` of config.json."""
    gguf_arch: str
    """`general.architecture` of the GGUF."""
    blocks: Mapping[str, BlockKind]
    """Kinds of decoder blocks by name; a dense family has only `dense`."""
    permute_rope: bool = False
    """Whether GGUF stores q and k rows interleaved (llama.cpp's NORM rope, Llama only)."""
    block_prefix: str = "model.layers."
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def block_kind(self, _layer: int, /) -> BlockKind:
        """Kind of the block at that depth."""
        return self.blocks["dense"]

    def tensor(self, layer: int, parameter: str) -> str:
        """Checkpoint name of a block's parameter."""
        return f"{self.block_prefix}{layer}.{parameter}"

    def gguf_names(self, n_layers: int) -> dict[str, str]:
        """GGUF name of every tensor by checkpoint name."""
        names = {
            self.embedding: "token_embd.weight",
            self.final_norm: "output_norm.weight",
            self.head: "output.weight",
        }
        for layer in range(n_layers):
            for parameter, gguf_name in self.block_kind(layer).gguf_names.items():
                names[self.tensor(layer, parameter)] = f"blk.{layer}.{gguf_name}"
        return names


_DENSE_INPUTS = (
    Input(
        name="attn_in",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        fold_kind=FoldKind.NORM,
        fold_into="input_layernorm",
    ),
    Input(
        name="attn_out",
        linears=("self_attn.o_proj",),
        fold_kind=FoldKind.GROUPED_VALUE,
        fold_into="self_attn.v_proj",
    ),
    Input(
        name="mlp_in",
        linears=("mlp.gate_proj", "mlp.up_proj"),
        fold_kind=FoldKind.NORM,
        fold_into="post_attention_layernorm",
    ),
    Input(
        name="mlp_mid",
        linears=("mlp.down_proj",),
        fold_kind=FoldKind.LINEAR,
        fold_into="mlp.up_proj",
    ),
)

_DENSE_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_BIAS_NAMES = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
}
_QK_NORM_NAMES = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}

QWEN2 = Architecture(
    model_type="qwen2",
    gguf_arch="qwen2",
    blocks={
        "dense": BlockKind(
            inputs=_DENSE_INPUTS,
            gguf_names=_DENSE_NAMES
            | {name: gguf for name, gguf in _BIAS_NAMES.items() if "o_proj" not in name},
        )
    },
)
QWEN3 = Architecture(
    model_type="qwen3",
    gguf_arch="qwen3",
    blocks={"dense": BlockKind(inputs=_DENSE_INPUTS, gguf_names=_DENSE_NAMES | _QK_NORM_NAMES)},
)
LLAMA = Architecture(
    model_type="llama",
    gguf_arch="llama",
    permute_rope=True,
    blocks={
        "dense": BlockKind(
            inputs=_DENSE_INPUTS,
            gguf_names=_DENSE_NAMES | _BIAS_NAMES,
            optional=frozenset(_BIAS_NAMES),
        )
    },
)

ARCHITECTURES = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA)}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a `model_type`; raises `CheckpointError` for an unknown one."""
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"model_type {model_type!r} is not a family that tightfit knows",
            allowed="families: " + ", ".join(ARCHITECTURES),
            hint="tightfit is for DeepSeek-R1 and its distilled checkpoints: see `tightfit models`",
        )
    return ARCHITECTURES[model_type]
