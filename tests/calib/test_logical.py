"""Names of logical tensors and of what a checkpoint stores, and kv_b in its two parts."""

import math

import torch
from support.deepseek_v3 import logical_tensors

from tightfit.calib.architecture import DEEPSEEK_V3, QWEN2
from tightfit.calib.logical import (
    expert_name,
    is_heads,
    is_stack,
    join_kv_b,
    logical_name,
    split_kv_b,
    split_shape,
    stored_names,
)
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import count_parameters, mtp_shapes, stored_shapes, tensor_shapes

R1 = MODELS["deepseek-ai/DeepSeek-R1"].dimensions
STACK = "model.layers.60.mlp.experts.*.down_proj.weight"
KV_B = "model.layers.0.self_attn.kv_b_proj.weight"
K_B, V_B = (KV_B.replace("kv_b", part) for part in ("k_b", "v_b"))


def test_a_stack_is_stored_expert_by_expert() -> None:
    names = stored_names(STACK, R1)
    assert len(names) == 256
    assert names[7] == expert_name(STACK, 7) == "model.layers.60.mlp.experts.7.down_proj.weight"
    assert {logical_name(name) for name in names} == {STACK} == {logical_name(STACK)}
    assert is_stack(STACK)
    assert not any(map(is_stack, names))
    shared = "model.layers.60.mlp.shared_experts.down_proj.weight"
    assert not is_stack(shared)
    assert stored_names(shared, R1) == (shared,)
    assert logical_name(shared) == shared


def test_both_parts_of_the_heads_are_stored_as_one() -> None:
    for name in (K_B, V_B):
        assert is_heads(name)
        assert stored_names(name, R1) == (KV_B,)
    assert not is_heads(KV_B)
    assert not is_heads("model.layers.0.self_attn.q_b_proj.weight")
    assert split_shape(K_B, R1) == (128, 512, 128)


def test_the_heads_are_parted_and_joined_exactly() -> None:
    small = torch.randn(128 * 256, 512, generator=torch.Generator().manual_seed(0))
    kv_b = small.to(torch.bfloat16)
    k_b, v_b = split_kv_b(kv_b, R1)
    expected = logical_tensors({KV_B: kv_b}, R1)
    assert k_b.equal(expected[K_B])
    assert v_b.equal(expected[V_B])
    assert k_b.dtype == v_b.dtype == torch.bfloat16
    assert k_b.is_contiguous()
    assert v_b.is_contiguous()
    assert join_kv_b(k_b, v_b).equal(kv_b)


def test_r1_stores_as_many_tensors_as_its_index_lists() -> None:
    """91991 entries, scales included; the Hub counts 684.53 billion numbers in them."""
    shapes = tensor_shapes(DEEPSEEK_V3, R1)
    stored = stored_shapes(shapes, R1)
    assert count_parameters(stored) == count_parameters(shapes) == 671_026_419_200
    mtp = mtp_shapes(DEEPSEEK_V3, R1)
    assert stored["model.layers.60.mlp.experts.255.up_proj.weight"] == (2048, 7168)
    assert stored[KV_B] == (32768, 512)
    assert not mtp.keys() & shapes.keys()
    both = stored | stored_shapes(mtp, R1)
    scaled = [name for name in both if name.endswith(("_proj.weight", "_with_mqa.weight"))]
    scaled = [name for name in scaled if "eh_proj" not in name]
    assert len(both) + len(scaled) == 91_991
    blocks = sum(
        math.ceil(rows / 128) * math.ceil(wide / 128) for rows, wide in map(both.get, scaled)
    )
    assert round((count_parameters(both) + blocks) / 1e9, 2) == 684.53


def test_a_dense_family_is_stored_by_its_own_names() -> None:
    dimensions = MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"].dimensions
    shapes = tensor_shapes(QWEN2, dimensions)
    assert stored_shapes(shapes, dimensions) == shapes
    assert not mtp_shapes(QWEN2, dimensions)
