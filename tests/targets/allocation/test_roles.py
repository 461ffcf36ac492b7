"""Roles by name, for single experts and for the stack of all of them."""

import pytest

from tightfit.calib.architecture import architecture_of
from tightfit.targets.allocation.roles import role_of

LAYER = "model.layers.12."


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "model.norm"),
        (LAYER + "self_attn.q_proj.weight", "self_attn.q_proj"),
        (LAYER + "self_attn.q_proj.bias", "self_attn.q_proj.bias"),
        (LAYER + "mlp.experts.17.up_proj.weight", "mlp.experts.*.up_proj"),
        (LAYER + "mlp.experts.*.up_proj.weight", "mlp.experts.*.up_proj"),
        (LAYER + "mlp.shared_experts.up_proj.weight", "mlp.shared_experts.up_proj"),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert role_of(architecture_of("qwen2"), name) == role
