from pathlib import Path

import pytest

from tightfit.calib.architecture import ARCHITECTURES
from tightfit.calib.models import MODELS, find_model, load_models
from tightfit.calib.shapes import count_parameters, tensor_shapes

# Totals that the Hub shows for each checkpoint (its safetensors metadata).
PUBLISHED = {
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "DeepSeek-R1-0528-Qwen3-8B": 8_190_735_360,
}
FULL = ("DeepSeek-R1", "DeepSeek-R1-Zero", "DeepSeek-R1-0528")
# DeepSeek-R1's safetensors metadata: F8_E4M3 + BF16 + F32 numbers, scales and the
# multi-token-prediction layer included.
FULL_PUBLISHED = 680_571_043_840 + 3_918_786_560 + 41_555_600


def test_the_family_is_complete() -> None:
    assert {hub_id.removeprefix("deepseek-ai/") for hub_id in MODELS} == {*PUBLISHED, *FULL}
    assert all(model.license == "MIT" for model in MODELS.values())


def test_licences_are_the_hubs_and_those_of_the_bases() -> None:
    for model in MODELS.values():
        assert (model.terms is None) == (not model.base_terms)
        llama = "Llama" in model.base_model
        assert (model.hub_license == "mit") == (not llama)
        if llama:
            version = model.hub_license.removeprefix("llama")
            assert f"Llama-{version}-" in model.base_model
            assert model.terms is not None
            assert model.terms.name == model.base_terms == f"Llama {version} Community License"
            assert model.terms.url.endswith(f"/llama{version.replace('.', '_')}/LICENSE")
            # Section 1.b.iii of both agreements.
            assert model.terms.notice == (
                f"Llama {version} is licensed under the Llama {version} Community License, "
                "Copyright © Meta Platforms, Inc. All Rights Reserved."
            )
            assert model.terms.display == "Built with Llama"
        elif model.terms is not None:
            assert model.base_terms.startswith("Apache-2.0")
            assert model.terms.name == "Apache License 2.0"
            assert (model.terms.notice, model.terms.display) == ("", "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_models_have_the_published_number_of_parameters(name: str) -> None:
    model = MODELS[f"deepseek-ai/{name}"]
    shapes = tensor_shapes(ARCHITECTURES[model.dimensions.model_type], model.dimensions)
    assert count_parameters(shapes) == model.n_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", FULL)
def test_the_full_models_add_up_to_the_published_number(name: str) -> None:
    model = MODELS[f"deepseek-ai/{name}"]
    sizes, mla, moe = model.dimensions, model.dimensions.mla, model.dimensions.moe
    assert mla is not None
    assert moe is not None
    assert sizes.head_dim == mla.qk_nope_head_dim + mla.qk_rope_head_dim
    hidden, heads = sizes.hidden_size, sizes.n_heads
    attention = [
        (mla.q_lora_rank, hidden),
        (heads * sizes.head_dim, mla.q_lora_rank),
        (mla.kv_lora_rank + mla.qk_rope_head_dim, hidden),
        (heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank),
        (hidden, heads * mla.v_head_dim),
    ]
    norms = 2 * hidden + mla.q_lora_rank + mla.kv_lora_rank
    dense = [(sizes.intermediate_size, hidden)] * 3
    expert = [(moe.expert_intermediate_size, hidden)] * 3
    experts = expert * (moe.n_routed_experts + moe.n_shared_experts)
    router = moe.n_routed_experts * hidden + moe.n_routed_experts  # with its correction bias
    n_moe = sizes.n_layers - moe.n_dense_layers

    def weights(linears: list[tuple[int, int]]) -> int:
        return sum(rows * columns for rows, columns in linears)

    def scales(linears: list[tuple[int, int]]) -> int:
        return sum(-(-rows // 128) * -(-columns // 128) for rows, columns in linears)

    embeddings = 2 * sizes.vocab_size * hidden
    moe_layer = weights(attention) + weights(experts) + router + norms
    dense_layer = weights(attention) + weights(dense) + norms
    running = embeddings + hidden + moe.n_dense_layers * dense_layer + n_moe * moe_layer
    assert model.n_parameters == running

    # The extra layer joins two normed inputs by a projection and repeats embedding and head.
    extra_layer = sizes.n_mtp_layers * (moe_layer + 2 * hidden * hidden + 3 * hidden + embeddings)
    stored_scales = (
        (sizes.n_layers + sizes.n_mtp_layers) * scales(attention)
        + moe.n_dense_layers * scales(dense)
        + (n_moe + sizes.n_mtp_layers) * scales(experts)
    )
    assert running + extra_layer + stored_scales == FULL_PUBLISHED


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "DEEPSEEK-AI/deepseek-r1-distill-qwen-7b",
        "DeepSeek-R1-Distill-Qwen-7B",
        "r1-distill-qwen-7b",
        "R1-Distill-Qwen-7B",
    ],
)
def test_a_model_is_found_by_any_of_its_names(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.id == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


def test_an_unknown_name_is_not_found() -> None:
    assert find_model("r1-distill-qwen-9b") is None


def test_rope_of_the_families() -> None:
    llama = MODELS["deepseek-ai/DeepSeek-R1-Distill-Llama-70B"].dimensions
    assert llama.rope_scaling is not None
    assert (llama.rope_scaling.kind, llama.rope_scaling.factor) == ("llama3", 8.0)
    qwen3 = MODELS["deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"].dimensions
    assert qwen3.rope_scaling is not None
    assert qwen3.rope_scaling.kind == "yarn"
    # What the key is for: vLLM and llama.cpp multiply the two.
    both = qwen3.rope_scaling.yarn_attention_factor * (qwen3.rope_scaling.attn_factor or 0)
    assert both == pytest.approx(1.0)
    full = MODELS["deepseek-ai/DeepSeek-R1"].dimensions.rope_scaling
    assert full is not None
    assert full.yarn_attention_factor == 1.0


def test_a_name_given_twice_is_a_mistake(tmp_path: Path) -> None:
    import tightfit.calib.models as registry

    text = Path(registry.__file__).with_name("models.toml").read_text()
    doubled = tmp_path / "models.toml"
    doubled.write_text(text + text)
    with pytest.raises(AssertionError, match="twice"):
        load_models(doubled)
