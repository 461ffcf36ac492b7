"""The memory model against what llama.cpp itself reported."""

import pytest

from tightfit.calib.dimensions import ModelDimensions
from tightfit.targets.memory import compute_bytes, kv_cache_bytes, padded_context

MIB = 1 << 20


def dimensions(**sizes: int) -> ModelDimensions:
    return ModelDimensions(
        model_type="llama",
        max_position_embeddings=1 << 20,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        **sizes,
    )


SMOLLM2 = dimensions(
    hidden_size=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
)
QWEN_7B = dimensions(
    hidden_size=3584,
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_dim=128,
    intermediate_size=18944,
    vocab_size=152064,
)
TOLERANCE = 0.05

# llama.cpp's log lines, flash attention on, n_ubatch 512: docs/memory.md says where each is from.
REPORTED_MIB = [  # model, context, KV buffer, compute buffer
    (SMOLLM2, 2048, 45.00, 102.51),
    (SMOLLM2, 8192, 180.00, 98.25),
    (SMOLLM2, 98304, 2160.00, 109.51),
    (SMOLLM2, 131072, 2880.00, 141.51),
    (QWEN_7B, 2048, 112.00, 304.00),
]


@pytest.mark.parametrize(("model", "context", "kv_mib", "compute_mib"), REPORTED_MIB)
def test_as_llama_cpp_reports(
    model: ModelDimensions, context: int, kv_mib: float, compute_mib: float
) -> None:
    assert kv_cache_bytes(model, context) == kv_mib * MIB
    assert compute_bytes(model, context) == pytest.approx(compute_mib * MIB, rel=TOLERANCE)


@pytest.mark.parametrize(("asked", "given"), [(1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_context_is_padded(asked: int, given: int) -> None:
    assert padded_context(asked) == given
    assert kv_cache_bytes(SMOLLM2, asked) == kv_cache_bytes(SMOLLM2, given)
