"""Rotary positions in llama.cpp's terms.

**Row order.** The NORM rope of llama.cpp's `llama` architecture rotates neighbouring dimensions
(2i, 2i+1) of a head; transformers rotates (i, i + d/2). The rows of q_proj and k_proj are
therefore interleaved: stored row 2i + h of a head is checkpoint row i + h*d/2. Rows keep their
codes and scales, so this is exact on quantized rows.

**llama3 scaling** is a tensor `rope_freqs.weight` of d/2 divisors: llama.cpp rotates by
theta_i / divisor_i, so divisor = base frequency / scaled frequency.

**yarn.** llama.cpp multiplies cos and sin by (0.1 ln s + 1) * `rope.scaling.attn_factor`; that key
is our attention factor divided by the first part. (`yarn_attn_factor`, which llama.cpp's own
converter writes, is overwritten when the context is created.)
"""

import math

import numpy as np
from gguf import RopeScalingType
from numpy.typing import NDArray

from tightfit.calib.rope import RopeScaling, yarn_mscale
from tightfit.export.gguf.entry import Entry, f32, text, u32

ROPE_FREQS = "rope_freqs.weight"


def permute_rope_rows(rows: NDArray[np.generic], n_heads: int) -> NDArray[np.generic]:
    """Interleave the two halves of each head's rows: (n_heads * d, ...) of any dtype, or a bias."""
    assert rows.shape[0] % (2 * n_heads) == 0, (rows.shape, n_heads)
    halves = rows.reshape(n_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def rope_frequency_divisors(
    scaling: RopeScaling, *, head_dim: int, theta: float
) -> NDArray[np.float32]:
    """`rope_freqs.weight` (head_dim / 2,) of a llama3 scaling."""
    assert scaling.kind == "llama3"
    assert scaling.original_max_position_embeddings is not None
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    # 0 below low_freq_factor turns in the original context (interpolated), 1 above high_freq_factor
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (1.0 / ((1.0 - kept) / scaling.factor + kept)).astype(np.float32)


def rope_entries(
    architecture: str, *, head_dim: int, theta: float, scaling: RopeScaling | None
) -> list[Entry]:
    """Metadata of the rope; llama3's scaling is a tensor and has none."""
    prefix = f"{architecture}.rope"
    entries = [u32(f"{prefix}.dimension_count", head_dim), f32(f"{prefix}.freq_base", theta)]
    if scaling is None or scaling.kind == "llama3":
        return entries
    kind = RopeScalingType.YARN if scaling.kind == "yarn" else RopeScalingType.LINEAR
    entries += [
        text(f"{prefix}.scaling.type", kind.value),
        f32(f"{prefix}.scaling.factor", scaling.factor),
    ]
    if scaling.kind == "yarn":
        assert scaling.original_max_position_embeddings is not None
        extra = scaling.yarn_attention_factor / yarn_mscale(scaling.factor)
        entries += [
            u32(
                f"{prefix}.scaling.original_context_length",
                scaling.original_max_position_embeddings,
            ),
            f32(f"{prefix}.scaling.attn_factor", extra),
            f32(f"{prefix}.scaling.yarn_beta_fast", scaling.beta_fast),
            f32(f"{prefix}.scaling.yarn_beta_slow", scaling.beta_slow),
        ]
    return entries
