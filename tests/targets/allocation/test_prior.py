"""The prior against hand calculation and against llama.cpp's published KL divergences."""

import math
from dataclasses import replace

import pytest

from benchmarks.prior_fit import F16_NATS, LLAMA3_8B
from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import MODELS
from tightfit.targets.allocation.noise import RELATIVE_NOISE
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.targets.schemes.ggml_file_types import ggml_file_type
from tightfit.targets.schemes.gguf import file_type_storage

C = 0.64
LIGHT, HEAVY = 1, 3


def known(name: str) -> ModelDimensions:
    return next(model.dimensions for model in MODELS.values() if model.name == name)


def losses(dimensions: ModelDimensions) -> dict[str, dict[str, float]]:
    found = prior_sensitivity(architecture_of(dimensions.model_type), dimensions)
    assert found.n_tokens == 0
    assert not found.measured
    assert not found.corrections
    return {name: dict(table) for name, table in found.losses.items()}


def uniform_nats(dimensions: ModelDimensions, grid: str) -> float:
    return sum(table[grid] for table in losses(dimensions).values())


def storage(dimensions: ModelDimensions, file_type: str) -> dict[str, str]:
    architecture = architecture_of(dimensions.model_type)
    return file_type_storage(ggml_file_type(file_type), architecture, dimensions)


def test_one_tensor_by_hand() -> None:
    found = losses(known("r1-distill-llama-8b"))
    assert found["model.layers.5.self_attn.q_proj.weight"]["Q4_K"] == pytest.approx(
        0.64 * 1 * 3.983e-3 / 32
    )
    assert found["model.layers.31.mlp.down_proj.weight"]["Q6_K"] == pytest.approx(
        0.64 * 3 * 2.162e-4 / 32
    )
    assert found["lm_head.weight"]["Q6_K"] == pytest.approx(0.64 * 3 * 2.162e-4)
    assert found["model.embed_tokens.weight"]["Q4_K"] == pytest.approx(0.64 * 1 * 3.983e-3)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        # q, k, o, gate; v, up, down; embedding and head.
        ("r1-distill-qwen-1.5b", 4 * LIGHT + 3 * HEAVY + LIGHT + HEAVY),
        ("r1-distill-llama-70b", 4 * LIGHT + 3 * HEAVY + LIGHT + HEAVY),
        # q_a, q_b, k_b, o, gate; kv_a, v_b, up, down: routed and shared experts are one MLP.
        ("r1", 5 * LIGHT + 4 * HEAVY + LIGHT + HEAVY),
    ],
)
def test_a_uniform_grid_costs_the_sum_of_the_roles(name: str, units: int) -> None:
    for grid in ("Q4_0", "int4-g128-sym", "fp8-e4m3-channel"):
        assert uniform_nats(known(name), grid) == pytest.approx(C * units * RELATIVE_NOISE[grid])


def test_a_tied_head_is_both() -> None:
    dimensions = known("r1-distill-qwen-1.5b")
    tied = losses(replace(dimensions, tie_word_embeddings=True))
    assert "lm_head.weight" not in tied
    apart = losses(dimensions)
    assert tied["model.embed_tokens.weight"]["Q6_K"] == pytest.approx(
        apart["model.embed_tokens.weight"]["Q6_K"] + apart["lm_head.weight"]["Q6_K"]
    )


def test_the_parts_of_a_mixture_by_hand() -> None:
    # R1: 8 experts a token whose scores sum to 2.5, beside one shared expert.
    routed = 8 * (2.5 / 8) ** 2
    assert routed == pytest.approx(0.78125)
    found = losses(known("r1"))
    layer = "model.layers.40.mlp."
    ratio = (
        found[layer + "experts.*.down_proj.weight"]["Q4_K"]
        / found[layer + "shared_experts.down_proj.weight"]["Q4_K"]
    )
    assert ratio == pytest.approx(routed)


@pytest.mark.parametrize("name", [model.name for model in MODELS.values()])
def test_matrices_are_those_that_llama_cpp_quantizes(name: str) -> None:
    dimensions = known(name)
    quantized = {
        tensor
        for tensor, stored_as in storage(dimensions, "q8_0").items()
        if stored_as not in FLOAT_BYTES
    }
    assert set(losses(dimensions)) == quantized


def test_published_file_types_come_out() -> None:
    dimensions = known("r1-distill-llama-8b")
    ratios = []
    for file_type, nats in LLAMA3_8B.items():
        predicted = prior_sensitivity(architecture_of(dimensions.model_type), dimensions).loss_nats(
            {
                name: stored_as
                for name, stored_as in storage(dimensions, file_type).items()
                if stored_as != "F32"
            }
        )
        ratios.append(math.log(predicted / (nats - F16_NATS)))
        assert math.exp(abs(ratios[-1])) < 1.3, file_type
    # The constant is the one that fits best.
    assert sum(ratios) / len(ratios) == pytest.approx(0, abs=0.02)
