"""DeepSeek-R1 itself (671B) under every kind of scheme, without a byte of it."""

from collections import Counter

import pytest
from gguf import GGMLQuantizationType as Type

from tightfit.calib.architecture import DEEPSEEK_V3
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import tensor_shapes
from tightfit.targets.schemes.ggml_types import tensor_bytes
from tightfit.targets.schemes.gguf import gguf_shapes, scheme_types
from tightfit.targets.schemes.scheme import parse_scheme

MODEL = MODELS["deepseek-ai/DeepSeek-R1"]
R1 = MODEL.dimensions
BLOCK = "model.layers.30."
EXPERTS = f"{BLOCK}mlp.experts.*.gate_proj.weight"
ROUTING = (f"{BLOCK}mlp.gate.weight", f"{BLOCK}mlp.gate.e_score_correction_bias")


def test_the_size_is_what_llama_cpp_reports() -> None:
    """A log of llama.cpp that loads a Q4_0 of R1 made with an importance matrix.

    `type f32: 361, q4_0: 652, q4_1: 11, q6_K: 1 tensors`, `file size = 353.00 GiB (4.52 BPW)`;
    kv_b was still one tensor, whose two halves take the same bytes in Q4_0.
    """
    shapes = gguf_shapes(DEEPSEEK_V3, R1)
    types = scheme_types("q4_0", shapes, DEEPSEEK_V3, R1)
    n_bytes = sum(tensor_bytes(types[name], shape) for name, shape in shapes.items())
    assert f"{n_bytes / 2**30:.2f}" == "353.00"
    assert f"{n_bytes * 8 / MODEL.n_parameters:.2f}" == "4.52"
    assert Counter(types.values()) == {
        Type.F32: 361,
        Type.Q4_0: 652 + R1.n_layers,
        Type.Q4_1: 11,
        Type.Q6_K: 1,
    }


def test_bytes_of_merged_experts_by_hand() -> None:
    # Q4_K: 144 bytes for 256 weights; 28 of them in a row of 7168.
    assert tensor_bytes(Type.Q4_K, (256, 2048, 7168)) == 256 * 2048 * 28 * 144


@pytest.mark.parametrize("name", ["int4-g128", "gptq-int8-channel", "int4-g32"])
def test_one_grid_takes_the_experts_and_leaves_the_router(name: str) -> None:
    storage = parse_scheme(name, format="gguf").storage(DEEPSEEK_V3, R1)
    shapes = tensor_shapes(DEEPSEEK_V3, R1)
    assert list(storage) == list(shapes)
    plain = {key: kind for key, kind in storage.items() if kind in ("F16", "F32")}
    (grid,) = {kind for key, kind in storage.items() if key not in plain}
    assert storage[EXPERTS] == storage[f"{BLOCK}self_attn.k_b_proj.weight"] == grid
    routing = {key.replace(".30.", f".{layer}.") for key in ROUTING for layer in range(3, 61)}
    assert {key for key, kind in plain.items() if kind == "F32"} == routing
    matrices = {key for key in plain if len(shapes[key]) > 1}
    assert matrices - routing == {DEEPSEEK_V3.embedding}


@pytest.mark.parametrize("name", ["q2_k", "q4_k_m", "f16", "bf16", "int4-g128"])
def test_routers_are_not_rounded(name: str) -> None:
    storage = parse_scheme(name, format="gguf").storage(DEEPSEEK_V3, R1)
    assert [storage[key] for key in ROUTING] == ["F32", "F32"]
