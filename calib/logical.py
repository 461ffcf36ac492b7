"""Logical tensors and what a checkpoint stores them as (`deepseek_v3` says which differ).

Shape legend: H heads, L latent, N part of a query or key head without rope, V value head.
"""

import re
from typing import TYPE_CHECKING

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import ANY_EXPERT

if TYPE_CHECKING:
    from torch import Tensor

_STACK = f".{ANY_EXPERT}."
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
HEADS = ("self_attn.k_b_proj.weight", "self_attn.v_b_proj.weight")
"""Key and value part, inside a block."""
STORED_HEADS = "self_attn.kv_b_proj.weight"
"""What the checkpoint stores both in."""


def is_stack(name: str) -> bool:
    """Whether the name stands for the matrices of all routed experts."""
    return _STACK in name


def expert_name(stack: str, number: int) -> str:
    """Stored name of one expert's matrix."""
    return stack.replace(_STACK, f".{number}.")


def logical_name(stored: str) -> str:
    """The stack that an expert's matrix belongs to; every other name is itself."""
    return _EXPERT.sub(ANY_EXPERT, stored)


def is_heads(name: str) -> bool:
    """Whether the tensor is the key or value part of a stored `kv_b_proj`."""
    return name.endswith(HEADS)


def is_keys(name: str) -> bool:
    """Whether it is the key part."""
    return name.endswith(HEADS[0])


def stored_names(name: str, dimensions: ModelDimensions) -> tuple[str, ...]:
    """Names in the checkpoint of what a logical tensor is made of."""
    if is_stack(name):
        assert dimensions.moe is not None
        return tuple(expert_name(name, n) for n in range(dimensions.moe.n_routed_experts))
    if is_heads(name):
        prefix = next(name.removesuffix(end) for end in HEADS if name.endswith(end))
        return (prefix + STORED_HEADS,)
    return (name,)


def split_kv_b(kv_b: "Tensor", dimensions: ModelDimensions) -> tuple["Tensor", "Tensor"]:
    """`kv_b_proj` (H (N + V), L) as k_b (H, L, N) and v_b (H, V, L)."""
    mla = dimensions.mla
    assert mla is not None
    heads = kv_b.reshape(dimensions.n_heads, -1, mla.kv_lora_rank)
    keys, values = heads[:, : mla.qk_nope_head_dim], heads[:, mla.qk_nope_head_dim :]
    return keys.transpose(1, 2).contiguous(), values.contiguous()


def split_shape(name: str, dimensions: ModelDimensions) -> tuple[int, int, int]:
    """Shape of the key or value part."""
    mla = dimensions.mla
    assert mla is not None
    if is_keys(name):
        return dimensions.n_heads, mla.kv_lora_rank, mla.qk_nope_head_dim
    return dimensions.n_heads, mla.v_head_dim, mla.kv_lora_rank


def join_kv_b(k_b: "Tensor", v_b: "Tensor") -> "Tensor":
    """The inverse of `split_kv_b`."""
    # Here, because `tightfit plan` asks for names and shapes and does without torch.
    import torch

    return torch.cat([k_b.transpose(1, 2), v_b], dim=1).flatten(0, 1)
