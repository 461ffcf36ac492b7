"""The role of a tensor: its place inside a decoder block, whatever the layer (and the expert).

    model.layers.3.self_attn.q_proj.weight           self_attn.q_proj
    model.layers.9.mlp.experts.17.up_proj.weight     mlp.experts.*.up_proj
    model.layers.9.mlp.experts.*.up_proj.weight      mlp.experts.*.up_proj
    lm_head.weight                                   head
    model.embed_tokens.weight                        embedding

Tensors of a role differ by depth only, so one correction (or weight) serves all of them.
"""

from tightfit.calib.architecture import Architecture

EMBEDDING = "embedding"
"""Of a model with a tied head, too: that tensor is listed as the embedding."""
HEAD = "head"
_WEIGHT = ".weight"
_ANY_EXPERT = "*"


def role_of(architecture: Architecture, name: str) -> str:
    """The role of a tensor by its checkpoint name; biases and norms keep their whole path."""
    if name == architecture.embedding:
        return EMBEDDING
    if name == architecture.head:
        return HEAD
    if not name.startswith(architecture.block_prefix):
        return name.removesuffix(_WEIGHT)
    _, _, path = name.removeprefix(architecture.block_prefix).partition(".")
    parts = path.removesuffix(_WEIGHT).split(".")
    return ".".join(_ANY_EXPERT if part.isdecimal() else part for part in parts)
