"""Shapes of all parameters of a model, from its config alone.

Shapes are those of the checkpoint: a linear is (O, I), output rows and input columns.
"""

import math
from collections.abc import Mapping

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions

Shape = tuple[int, ...]


def tensor_shapes(architecture: Architecture, dimensions: ModelDimensions) -> dict[str, Shape]:
    """Every parameter by checkpoint name, in the order in which the model reads them.

    A tied head is the embedding and is not listed. Parameters that the architecture calls optional
    (biases) are listed where `attention_bias` says that they exist.
    """
    inside = _block_shapes(dimensions)
    shapes: dict[str, Shape] = {
        architecture.embedding: (dimensions.vocab_size, dimensions.hidden_size)
    }
    for layer in range(dimensions.n_layers):
        kind = architecture.block_kind(layer)
        for parameter in kind.gguf_names:
            if parameter in kind.optional and not dimensions.attention_bias:
                continue
            shapes[architecture.tensor(layer, parameter)] = inside[parameter]
    shapes[architecture.final_norm] = (dimensions.hidden_size,)
    if not dimensions.tie_word_embeddings:
        shapes[architecture.head] = (dimensions.vocab_size, dimensions.hidden_size)
    return shapes


def count_parameters(shapes: Mapping[str, Shape]) -> int:
    """Number of parameters in all."""
    return sum(math.prod(shape) for shape in shapes.values())


def _block_shapes(dimensions: ModelDimensions) -> dict[str, Shape]:
    hidden, wide = dimensions.hidden_size, dimensions.intermediate_size
    linears: dict[str, tuple[int, int]] = {
        "self_attn.q_proj": (dimensions.q_width, hidden),
        "self_attn.k_proj": (dimensions.kv_width, hidden),
        "self_attn.v_proj": (dimensions.kv_width, hidden),
        "self_attn.o_proj": (hidden, dimensions.q_width),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    norms = {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "self_attn.q_norm": dimensions.head_dim,
        "self_attn.k_norm": dimensions.head_dim,
    }
    weights: dict[str, Shape] = {f"{name}.weight": shape for name, shape in linears.items()}
    biases: dict[str, Shape] = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    scales: dict[str, Shape] = {f"{name}.weight": (width,) for name, width in norms.items()}
    return weights | biases | scales
