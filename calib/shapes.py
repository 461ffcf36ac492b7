"""Shapes of all parameters of a model, from its config alone.

Shapes are those of the checkpoint: a linear is (O, I), output rows and input columns. Tensors that
an artifact merges or splits have three dimensions, (experts or heads, O, I): see `deepseek_v3`.
"""

import math
from collections.abc import Mapping

from tightfit.calib.dimensions import MlaDimensions, ModelDimensions, MoeDimensions
from tightfit.calib.family import ANY_EXPERT, Architecture
from tightfit.calib.logical import HEADS, is_heads, is_stack, split_shape, stored_names

Shape = tuple[int, ...]


def tensor_shapes(architecture: Architecture, dimensions: ModelDimensions) -> dict[str, Shape]:
    """Every parameter by its name in the model, in the order in which the model reads them.

    A tied head is the embedding and is not listed. Parameters that the architecture calls optional
    (biases) are listed where `attention_bias` says that they exist.
    """
    inside = _block_shapes(dimensions)
    shapes: dict[str, Shape] = {
        architecture.embedding: (dimensions.vocab_size, dimensions.hidden_size)
    }
    for layer in range(dimensions.n_layers):
        kind = architecture.block_kind(layer, dimensions)
        for parameter in kind.gguf_names:
            if parameter in kind.optional and not dimensions.attention_bias:
                continue
            shapes[architecture.tensor(layer, parameter)] = inside[parameter]
    shapes[architecture.final_norm] = (dimensions.hidden_size,)
    if not dimensions.tie_word_embeddings:
        shapes[architecture.head] = (dimensions.vocab_size, dimensions.hidden_size)
    return shapes


def mtp_shapes(architecture: Architecture, dimensions: ModelDimensions) -> dict[str, Shape]:
    """The parameters of the multi-token-prediction layers, as `tensor_shapes` of the others."""
    inside = _block_shapes(dimensions) | _mtp_shapes(dimensions)
    first = dimensions.n_layers
    shapes: dict[str, Shape] = {}
    for layer in range(first, first + dimensions.n_mtp_layers):
        block = architecture.block_kind(layer, dimensions).gguf_names
        for parameter in (*architecture.mtp_names, *block):
            shapes[architecture.tensor(layer, parameter)] = inside[parameter]
    return shapes


def stored_shapes(logical: Mapping[str, Shape], dimensions: ModelDimensions) -> dict[str, Shape]:
    """The same by the names and shapes of a checkpoint: experts one by one, `kv_b_proj` whole."""
    stored: dict[str, Shape] = {}
    for name, shape in logical.items():
        if is_stack(name):
            stored |= dict.fromkeys(stored_names(name, dimensions), shape[1:])
        elif is_heads(name):
            mla = dimensions.mla
            assert mla is not None
            rows = dimensions.n_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
            (whole,) = stored_names(name, dimensions)
            stored[whole] = (rows, mla.kv_lora_rank)
        else:
            stored[name] = shape
    return stored


def count_parameters(shapes: Mapping[str, Shape]) -> int:
    """Number of parameters in all."""
    return sum(math.prod(shape) for shape in shapes.values())


def active_fraction(architecture: Architecture, dimensions: ModelDimensions, name: str) -> float:
    """Share of a tensor's weights that decoding one token reads.

    Of the routed experts those that the token visits, of an embedding that is not the head one row.
    """
    if name == architecture.embedding and not dimensions.tie_word_embeddings:
        return 1 / dimensions.vocab_size
    if dimensions.moe is not None and is_stack(name):
        return dimensions.moe.n_experts_per_token / dimensions.moe.n_routed_experts
    return 1.0


def _block_shapes(dimensions: ModelDimensions) -> dict[str, Shape]:
    """Everything that a block of some kind has, by parameter path."""
    hidden = dimensions.hidden_size
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes |= _mlp_shapes("mlp", dimensions.intermediate_size, hidden)
    if dimensions.mla is None:
        shapes |= _attention_shapes(dimensions)
    else:
        shapes |= _latent_attention_shapes(dimensions, dimensions.mla)
    if dimensions.moe is not None:
        shapes |= _mixture_shapes(dimensions.moe, hidden)
    return shapes


def _mlp_shapes(path: str, wide: int, hidden: int) -> dict[str, Shape]:
    return {
        f"{path}.gate_proj.weight": (wide, hidden),
        f"{path}.up_proj.weight": (wide, hidden),
        f"{path}.down_proj.weight": (hidden, wide),
    }


def _attention_shapes(dimensions: ModelDimensions) -> dict[str, Shape]:
    hidden, q_width, kv_width = dimensions.hidden_size, dimensions.q_width, dimensions.kv_width
    linears = {
        "self_attn.q_proj": (q_width, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, q_width),
    }
    norms = {
        "self_attn.q_norm.weight": (dimensions.head_dim,),
        "self_attn.k_norm.weight": (dimensions.head_dim,),
    }
    weights: dict[str, Shape] = {f"{name}.weight": shape for name, shape in linears.items()}
    biases: dict[str, Shape] = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return weights | biases | norms


def _latent_attention_shapes(dimensions: ModelDimensions, mla: MlaDimensions) -> dict[str, Shape]:
    hidden, n_heads, latent = dimensions.hidden_size, dimensions.n_heads, mla.kv_lora_rank
    shapes: dict[str, Shape] = {
        "self_attn.kv_a_proj_with_mqa.weight": (latent + mla.qk_rope_head_dim, hidden),
        "self_attn.kv_a_layernorm.weight": (latent,),
        **{name: split_shape(name, dimensions) for name in HEADS},
        "self_attn.o_proj.weight": (hidden, n_heads * mla.v_head_dim),
    }
    if mla.q_lora_rank is None:
        return shapes | {"self_attn.q_proj.weight": (dimensions.q_width, hidden)}
    return shapes | {
        "self_attn.q_a_proj.weight": (mla.q_lora_rank, hidden),
        "self_attn.q_a_layernorm.weight": (mla.q_lora_rank,),
        "self_attn.q_b_proj.weight": (dimensions.q_width, mla.q_lora_rank),
    }


def _mtp_shapes(dimensions: ModelDimensions) -> dict[str, Shape]:
    hidden, vocab = dimensions.hidden_size, dimensions.vocab_size
    return {
        "embed_tokens.weight": (vocab, hidden),
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "shared_head.norm.weight": (hidden,),
        "shared_head.head.weight": (vocab, hidden),
    }


def _mixture_shapes(moe: MoeDimensions, hidden: int) -> dict[str, Shape]:
    """Router, shared experts (one wide MLP) and routed experts of a layer."""
    n_experts, wide = moe.n_routed_experts, moe.expert_intermediate_size
    routed = _mlp_shapes(f"mlp.experts.{ANY_EXPERT}", wide, hidden)
    return {
        "mlp.gate.weight": (n_experts, hidden),
        "mlp.gate.e_score_correction_bias": (n_experts,),
        **_mlp_shapes("mlp.shared_experts", wide * moe.n_shared_experts, hidden),
        **{name: (n_experts, *shape) for name, shape in routed.items()},
    }
