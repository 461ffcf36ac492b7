"""Dimensions and rope scaling, against the config classes of transformers."""

import json
from pathlib import Path

import pytest
import torch
from support.checkpoints import ROPES
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tightfit.calib.config import ModelConfig, read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.rope import read_rope
from tightfit.errors import CheckpointError

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LATENT = dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16)
MIXTURE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 1,
    "moe_intermediate_size": 32,
}


def config(**values: object) -> ModelConfig:
    return ModelConfig(origin="config.json", values={"model_type": "llama", **SIZES, **values})


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_sizes_are_those_of_transformers(tmp_path: Path, kind: type) -> None:
    theirs = kind(**SIZES, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    ours = dimensions_of(read_config(tmp_path))
    assert ours.model_type == theirs.model_type
    assert ours.hidden_size == 96
    assert ours.n_layers == 3
    assert (ours.n_heads, ours.n_kv_heads) == (6, 2)
    assert ours.head_dim == getattr(theirs, "head_dim", 16)
    assert ours.intermediate_size == 160
    assert ours.vocab_size == 131
    assert ours.max_position_embeddings == 512
    assert ours.rms_norm_eps == 1e-5
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope_scaling is None
    assert ours.tie_word_embeddings


@pytest.mark.parametrize("rope", ROPES)
def test_both_places_of_rope_are_read_alike(rope: str) -> None:
    new = config(rope_parameters={"rope_theta": 5e5, **ROPES[rope]})
    old = config(rope_theta=5e5, rope_scaling=ROPES[rope])
    older = dict(ROPES[rope])
    older["type"] = older.pop("rope_type")
    oldest = config(rope_theta=5e5, rope_scaling=older)
    assert read_rope(new) == read_rope(old) == read_rope(oldest)
    theta, scaling = read_rope(new)
    assert theta == 5e5
    assert scaling is not None
    assert scaling.kind == rope
    assert scaling.factor == ROPES[rope]["factor"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"attention_factor": 0.75},
        {"attn_factor": 0.8782488562869419},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 1.3},
    ],
)
def test_the_yarn_factor_is_the_one_that_transformers_applies(extra: dict[str, float]) -> None:
    values = {"rope_theta": 1e4, **ROPES["yarn"], **extra}
    theirs = LlamaConfig(**SIZES, rope_parameters=dict(values))
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    _, scaling = read_rope(config(rope_parameters=values))
    assert scaling is not None
    assert scaling.yarn_attention_factor == expected
    assert scaling.attn_factor == extra.get("attn_factor")


def test_defaults_are_those_of_the_family() -> None:
    values = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    ours = dimensions_of(ModelConfig(origin="x", values={"model_type": "llama", **values}))
    assert ours.n_kv_heads == 6
    assert ours.rope_theta == 10000.0
    assert not ours.tie_word_embeddings
    assert not ours.attention_bias


def test_r1s_own_router_is_allowed() -> None:
    said = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    assert dimensions_of(config(**MIXTURE, **said)) == dimensions_of(config(**MIXTURE))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "the rope scaling is 'dynamic'",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'factor' is missing"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}}, "'factor' is nan"),
        ({"rope_scaling": {**ROPES["yarn"], "truncate": False}}, "'truncate' is false"),
        ({"rope_scaling": [1]}, "'rope_scaling' is [1]"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"use_sliding_window": True}, "'use_sliding_window' is true"),
        ({"mlp_bias": True}, "'mlp_bias' is true"),
        ({"model_type": "qwen3", "attention_bias": True}, "'attention_bias' is true"),
        ({**MIXTURE, "scoring_func": "softmax"}, "'scoring_func' is 'softmax'"),
        ({**MIXTURE, "topk_method": "greedy"}, "'topk_method' is 'greedy'"),
        ({**MIXTURE, "moe_layer_freq": 2}, "'moe_layer_freq' is 2"),
        ({**MIXTURE, "n_group": 3}, "visits 2 of 8 experts, in 1 of 3 groups"),
        ({**MIXTURE, "n_group": 8}, "visits 2 of 8 experts, in 1 of 8 groups"),
        ({**MIXTURE, "topk_group": 5}, "visits 2 of 8 experts, in 5 of 4 groups"),
        ({**MIXTURE, "num_experts_per_tok": 3}, "visits 3 of 8 experts, in 1 of 4 groups"),
        ({"model_type": "deepseek_v3"}, "'kv_lora_rank' is missing"),
        ({"model_type": "deepseek_v3", **LATENT}, "'n_routed_experts' is missing"),
        ({"num_key_value_heads": 4}, "6 attention heads share 4"),
        ({"hidden_size": True}, "'hidden_size' is True"),
        ({"vocab_size": 0}, "'vocab_size' is 0"),
        ({"tie_word_embeddings": "no"}, "'tie_word_embeddings' is 'no'"),
    ],
)
def test_what_cannot_be_kept_is_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        dimensions_of(config(**values))
    assert sentence in caught.value.problem
    assert caught.value.hint


def test_nan_of_a_json_file_is_refused(tmp_path: Path) -> None:
    values = {"model_type": "llama", **SIZES, "rms_norm_eps": float("nan")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="rms_norm_eps"):
        dimensions_of(read_config(tmp_path))
