"""What a model family is: the data that the walk, the algorithms and the writers share.

An architecture names its linears by their module path inside a decoder block, says which of them
read the same input (and so share one Hessian), where an AWQ scale may be folded, and what every
tensor is called in GGUF. It is data: a new family is a new table, not a subclass.

Tensors are *logical*: what an artifact stores as one tensor under one type has one name. That is
the checkpoint's name but for a mixture of experts with latent attention (`deepseek_v3`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tightfit.calib.dimensions import ModelDimensions

ANY_EXPERT = "*"
"""Stands for the number of a routed expert in the name of all experts' matrices of a layer."""
DENSE = "dense"
MIXTURE = "moe"
DIRECT_QUERY = "-direct-query"
"""Ends the name of a kind of block whose queries come from one q_proj instead of a latent."""


class FoldKind(StrEnum):
    """How the inverse of an input scale is absorbed by what produces that input."""

    NORM = "norm"
    """The weight of the norm before is divided channel by channel."""
    LINEAR = "linear"
    """The rows (and bias) of the linear before are divided; heads and rows count as one."""
    GROUPED_VALUE = "grouped-value"
    """The rows of v_proj, each feeding several heads: the scale is shared by a query group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A distinct activation that one or more linears of a block read."""

    name: str
    """E.g. `attn_in`."""
    linears: tuple[str, ...]
    """Module paths inside the block, e.g. `self_attn.q_proj`; the first one is hooked. Under
    `mlp.experts.*` each expert reads the tokens that are routed to it."""
    fold_kind: FoldKind | None = None
    """How an AWQ scale is absorbed; None: nowhere."""
    fold_into: str = ""
    """Module path that absorbs it; of `mlp.experts.*` each expert's own."""
    scaled_columns: tuple[str, ...] = ()
    """Modules that read it too and are on no grid (routers): a folded scale multiplies their
    columns."""
    scaled_rows: tuple[str, ...] = ()
    """Modules whose rows meet it, because they are stored transposed: a folded scale multiplies
    these rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockKind:
    """One kind of decoder block (dense, or mixture of experts)."""

    inputs: tuple[Input, ...]
    gguf_names: Mapping[str, str]
    """Parameter path inside the block to GGUF name inside `blk.N.`, both with their suffix:
    `self_attn.q_proj.weight` -> `attn_q.weight`."""
    optional: frozenset[str] = frozenset()
    """Parameters that a checkpoint of the family may lack (biases)."""
    routing: frozenset[str] = frozenset()
    """Parameters that choose experts. No grid is for them: a token whose scores are rounded visits
    other experts, and they are few."""

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
    mtp_names: Mapping[str, str] = field(default_factory=dict)
    """What a multi-token-prediction layer has beside a block's parameters, as in `gguf_names`."""
    mtp_copies: Mapping[str, str] = field(default_factory=dict)
    """Those of them that repeat a tensor of the model, and which: a checkpoint may leave them out.
    """

    def block_kind(self, layer: int, dimensions: ModelDimensions) -> BlockKind:
        """Kind of the block at that depth of a model of these sizes."""
        moe, mla = dimensions.moe, dimensions.mla
        kind = DENSE if moe is None or layer < moe.n_dense_layers else MIXTURE
        if mla is not None and mla.q_lora_rank is None:
            kind += DIRECT_QUERY
        return self.blocks[kind]

    def tensor(self, layer: int, parameter: str) -> str:
        """Name of a block's parameter in the whole model."""
        return f"{self.block_prefix}{layer}.{parameter}"

    def gguf_names(self, dimensions: ModelDimensions) -> dict[str, str]:
        """GGUF name of every tensor by its name in the model."""
        names = {
            self.embedding: "token_embd.weight",
            self.final_norm: "output_norm.weight",
            self.head: "output.weight",
        }
        for layer in range(dimensions.n_layers):
            for parameter, gguf_name in self.block_kind(layer, dimensions).gguf_names.items():
                names[self.tensor(layer, parameter)] = f"blk.{layer}.{gguf_name}"
        return names

    def mtp_gguf_names(self, dimensions: ModelDimensions) -> dict[str, str]:
        """The same of the multi-token-prediction layers, which are numbered on after the last."""
        names: dict[str, str] = {}
        first = dimensions.n_layers
        for layer in range(first, first + dimensions.n_mtp_layers):
            inside = {**self.mtp_names, **self.block_kind(layer, dimensions).gguf_names}
            for parameter, gguf_name in inside.items():
                names[self.tensor(layer, parameter)] = f"blk.{layer}.{gguf_name}"
        return names
