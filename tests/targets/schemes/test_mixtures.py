"""Schemes for a mixture of experts, added up by hand for DeepSeek-R1."""

from dataclasses import replace

import pytest

from tightfit.calib.architecture import DEEPSEEK_V3, QWEN2
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.errors import QuantizationError, UsageError
from tightfit.targets.schemes.ggml_types import GGML_GRIDS
from tightfit.targets.schemes.mixtures import DYNAMIC, LISTED_MIXTURES
from tightfit.targets.schemes.scheme import parse_scheme

MODEL = MODELS["deepseek-ai/DeepSeek-R1"]
R1 = MODEL.dimensions
DENSE = MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"].dimensions
BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q6_K": 6.5625, "Q8_0": 8.5, "F32": 32.0}
"""Block bytes * 8 / weights: 84, 110, 144, 210 bytes for 256, 34 for 32."""

MIXTURE_LAYERS, ALL_LAYERS = 58, 61
EXPERT_STACK = 256 * 2048 * 7168
"""Weights of gate, of up or of down, in all experts of a layer."""
KEY_PART = 128 * 512 * 128
"""k_b of a layer: heads, latent, 128 columns."""
ATTENTION = (
    1536 * 7168  # q_a
    + 128 * 192 * 1536  # q_b
    + (512 + 64) * 7168  # kv_a
    + 128 * 128 * 512  # v_b
    + 7168 * 128 * 128  # o
)
BESIDE = (
    ALL_LAYERS * ATTENTION
    + 3 * 3 * 18432 * 7168  # dense MLPs
    + MIXTURE_LAYERS * 3 * 2048 * 7168  # shared experts
    + 2 * 129280 * 7168  # embedding and head
)
NORMS = ALL_LAYERS * (2 * 7168 + 1536 + 512) + 7168
ROUTERS = MIXTURE_LAYERS * 256 * (7168 + 1)


def storage(name: str) -> dict[str, str]:
    return parse_scheme(name, format="gguf").storage(DEEPSEEK_V3, R1)


def bits_per_weight(stored: dict[str, str]) -> float:
    shapes = tensor_shapes(DEEPSEEK_V3, R1)
    n_bits = sum(
        BITS[kind] * count_parameters({name: shapes[name]}) for name, kind in stored.items()
    )
    return n_bits / MODEL.n_parameters


def by_hand(gate: str, down_bits: float, beside: str) -> float:
    """Bits per weight; `down_bits` is the mean over the layers."""
    routed = MIXTURE_LAYERS * EXPERT_STACK * (2 * BITS[gate] + down_bits)
    n_bits = routed + BESIDE * BITS[beside] + ALL_LAYERS * KEY_PART * BITS["Q8_0"]
    return (n_bits + 32 * (NORMS + ROUTERS)) / MODEL.n_parameters


def test_the_hand_knows_every_weight() -> None:
    routed = 3 * MIXTURE_LAYERS * EXPERT_STACK
    assert routed + BESIDE + ALL_LAYERS * KEY_PART + NORMS + ROUTERS == MODEL.n_parameters
    assert 0.974 < routed / MODEL.n_parameters < 0.975


def test_experts_only() -> None:
    stored = storage("experts-q4_k")
    shapes = tensor_shapes(DEEPSEEK_V3, R1)
    assert list(stored) == list(shapes)
    for name, shape in shapes.items():
        routing = ".mlp.gate." in name
        expected = "F32" if len(shape) == 1 or routing else "Q8_0"
        assert stored[name] == ("Q4_K" if ".experts." in name else expected), name
    assert bits_per_weight(stored) == pytest.approx(by_hand("Q4_K", 4.5, "Q8_0"), rel=1e-12)
    assert f"{bits_per_weight(stored):.2f}" == "4.61"


@pytest.mark.parametrize(
    ("name", "gate", "first", "least", "most"),
    [("dynamic-q2_k", "Q2_K", "Q3_K", 2.7, 2.9), ("dynamic-q3_k", "Q3_K", "Q4_K", 3.5, 3.6)],
)
def test_dynamic(name: str, gate: str, first: str, least: float, most: float) -> None:
    stored = storage(name)
    for layer in range(3, 61):
        prefix = f"model.layers.{layer}."
        experts = f"{prefix}mlp.experts.*."
        # A part in eight of 58 layers, rounded up: the layers 3 to 10.
        assert stored[f"{experts}down_proj.weight"] == (first if layer < 11 else gate)
        assert stored[f"{experts}gate_proj.weight"] == stored[f"{experts}up_proj.weight"] == gate
        assert stored[f"{prefix}mlp.gate.weight"] == "F32"
        assert stored[f"{prefix}mlp.shared_experts.down_proj.weight"] == "Q6_K"
    assert stored["model.layers.0.mlp.down_proj.weight"] == "Q6_K"
    assert stored["model.layers.0.self_attn.o_proj.weight"] == "Q6_K"
    # 128 columns: half a super-block.
    assert stored["model.layers.60.self_attn.k_b_proj.weight"] == "Q8_0"
    assert stored["lm_head.weight"] == stored["model.embed_tokens.weight"] == "Q6_K"
    down_bits = (8 * BITS[first] + 50 * BITS[gate]) / 58
    found = bits_per_weight(stored)
    assert found == pytest.approx(by_hand(gate, down_bits, "Q6_K"), rel=1e-12)
    assert least < found < most


@pytest.mark.parametrize("grid", GGML_GRIDS)
def test_any_grid_of_ggml_in_any_case(grid: str) -> None:
    scheme = parse_scheme(f"Experts-{grid}", format="gguf")
    assert scheme.name == f"experts-{grid.lower()}"
    stored = scheme.storage(DEEPSEEK_V3, R1)
    assert {kind for name, kind in stored.items() if ".experts." in name} == {grid}


def test_few_layers_have_one_first_layer() -> None:
    small = replace(R1, n_layers=5)
    stored = parse_scheme("dynamic-q2_k", format="gguf").storage(DEEPSEEK_V3, small)
    downs = [kind for name, kind in stored.items() if "experts.*.down" in name]
    assert downs == ["Q3_K", "Q2_K"]


def test_overrides_of_head_and_embedding() -> None:
    scheme = parse_scheme("dynamic-q2_k", format="gguf", head="q8_0", embedding="q4_k")
    stored = scheme.storage(DEEPSEEK_V3, R1)
    assert stored["lm_head.weight"] == "Q8_0"
    assert stored["model.embed_tokens.weight"] == "Q4_K"


@pytest.mark.parametrize("name", LISTED_MIXTURES)
def test_a_dense_model_has_no_experts(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is for a mixture of experts, and a qwen2 has"):
        parse_scheme(name, format="gguf").storage(QWEN2, DENSE)


@pytest.mark.parametrize("format_", ["onnx", "tensorrt"])
@pytest.mark.parametrize("name", LISTED_MIXTURES)
def test_only_a_gguf_holds_them(name: str, format_: str) -> None:
    with pytest.raises(UsageError, match=f"cannot hold {name}") as caught:
        parse_scheme(name, format=format_)
    assert caught.value.hint == f"--format gguf holds {name}"


@pytest.mark.parametrize("name", ["experts-q9", "experts-q4_k_m", "experts-", "dynamic-q4_k"])
def test_unknown_ones_list_what_exists(name: str) -> None:
    with pytest.raises(UsageError, match="not a scheme for a mixture") as caught:
        parse_scheme(name, format="gguf")
    assert "iq4_xs" in caught.value.allowed
    assert all(scheme in caught.value.allowed for scheme in DYNAMIC)


def test_other_unknown_schemes_name_them() -> None:
    with pytest.raises(UsageError) as caught:
        parse_scheme("q9", format="gguf")
    assert "experts-GRID" in caught.value.allowed
    with pytest.raises(UsageError) as caught:
        parse_scheme("q9", format="onnx")
    assert "experts-" not in caught.value.allowed


@pytest.mark.parametrize("name", ["experts-q4_k", "experts-iq4_xs", "dynamic-q3_k"])
def test_experts_too_narrow_for_super_blocks(name: str) -> None:
    narrow = replace(R1, moe=replace(R1.moe, expert_intermediate_size=192))
    with pytest.raises(QuantizationError, match="its width 192 is not a multiple of 256") as caught:
        parse_scheme(name, format="gguf").storage(DEEPSEEK_V3, narrow)
    instead = caught.value.hint.split()[1]
    assert parse_scheme(instead, format="gguf").storage(DEEPSEEK_V3, narrow)
