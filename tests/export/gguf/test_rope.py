import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tightfit.calib.rope import RopeScaling
from tightfit.export.gguf.rope import permute_rope_rows, rope_entries, rope_frequency_divisors


def test_rows_follow_the_definition() -> None:
    n_heads, head_dim, columns = 3, 8, 5
    rows = np.arange(n_heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    slow = np.empty_like(rows)
    for head in range(n_heads):
        for pair in range(head_dim // 2):
            for half in range(2):
                source = head * head_dim + half * head_dim // 2 + pair
                slow[head * head_dim + 2 * pair + half] = rows[source]
    np.testing.assert_array_equal(permute_rope_rows(rows, n_heads), slow)


def test_stored_bytes_and_biases_keep_their_rows_whole() -> None:
    values = np.random.default_rng(0)
    bias = np.arange(16, dtype=np.float32)
    packed = values.integers(0, 256, (16, 144), dtype=np.uint8)
    order = permute_rope_rows(bias, 2).astype(int)
    np.testing.assert_array_equal(permute_rope_rows(packed, 2), packed[order])
    assert sorted(order) == list(range(16))
    assert list(order[:4]) == [0, 4, 1, 5]


def test_llama3_divisors_give_transformers_frequencies() -> None:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=128, rope_parameters=parameters, max_position_embeddings=131072)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    scaling = RopeScaling(
        kind="llama3",
        factor=8.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    divisors = rope_frequency_divisors(scaling, head_dim=128, theta=500000.0)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / divisors, wanted.numpy(), rtol=2e-6)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert ((divisors > 1.0) & (divisors < 8.0)).any()


@pytest.mark.parametrize(
    ("attention_factor", "stored"), [(None, 1.0), (1.0, 0.878248856), (1.5, 1.317373284)]
)
def test_yarn_attention_factor_is_relative_to_llama_cpps_own(
    attention_factor: float | None, stored: float
) -> None:
    scaling = RopeScaling(
        kind="yarn",
        factor=4.0,
        original_max_position_embeddings=32768,
        attention_factor=attention_factor,
    )
    entries = {
        entry.key: entry.value
        for entry in rope_entries("qwen3", head_dim=128, theta=1e6, scaling=scaling)
    }
    assert entries["qwen3.rope.scaling.type"] == "yarn"
    assert entries["qwen3.rope.scaling.original_context_length"] == 32768
    assert entries["qwen3.rope.scaling.attn_factor"] == pytest.approx(stored, abs=1e-8)
