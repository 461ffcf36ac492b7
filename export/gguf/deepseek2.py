"""Latent attention and the mixture of experts in llama.cpp's terms (`deepseek2`).

Its cache holds one head of latents: keys are the latent and the rotated part, values the latent. Of
each head the expanded sizes are in keys that end in `_mla`.

**yarn.** llama.cpp multiplies cos and sin by `attn_factor`, and the scores by the square of
`attn_factor` (1 + 10 `yarn_log_multiplier` 0.1 ln s). transformers multiplies cos and sin by the
attention factor a, and the scores by the square of m = 1 + 0.1 `mscale_all_dim` ln s. So
`attn_factor` is a, and the multiplier makes up for it: m / a. R1 has a = 1. Without a multiplier
(m = a) llama.cpp multiplies `attn_factor` by 1 + 0.1 ln s, so that is divided out.

**Multi-token prediction.** The layers follow the last one, count in `block_count` and in
`nextn_predict_layers`; llama.cpp reads them to draft tokens and ignores them otherwise.
"""

import math

from gguf import ExpertGatingFuncType, RopeScalingType

from tightfit.calib.dimensions import ModelDimensions, MoeDimensions
from tightfit.calib.rope import RopeScaling, yarn_mscale
from tightfit.errors import CheckpointError
from tightfit.export.gguf.entry import Entry, f32, flag, text, u32

_LAYERS_WITHOUT_QUERY_LATENT = (26, 27)
"""llama.cpp takes models of so many layers for DeepSeek-V2-Lite and its kin, which have a q_proj
instead of the query latent; of all others it demands the latent."""
_LATENT_NORM_EPS = 1e-6
"""transformers' epsilon of the norms of the latents, whatever the config says."""


def check_deepseek2(dimensions: ModelDimensions) -> None:
    """Raise `CheckpointError` for what llama.cpp would compute otherwise than transformers."""
    mla, moe = dimensions.mla, dimensions.moe
    assert mla is not None
    wrong: list[tuple[str, str]] = []
    if dimensions.rms_norm_eps != _LATENT_NORM_EPS:
        wrong.append((f"rms_norm_eps is {dimensions.rms_norm_eps:g}", "1e-06, as in R1"))
    if not mla.rope_interleave:
        wrong.append(("rope_interleave is false", "true, as in R1"))
    is_lite = dimensions.n_layers in _LAYERS_WITHOUT_QUERY_LATENT
    if is_lite and mla.q_lora_rank is not None:
        wrong.append(
            (f"{dimensions.n_layers} layers and q_lora_rank", "no rank in that many layers")
        )
    if not is_lite and mla.q_lora_rank is None:
        wrong.append(("q_lora_rank is null", "a rank, as in R1"))
    if moe is None:
        wrong.append(("n_routed_experts is missing", "a mixture of experts, as in R1"))
    scaling = dimensions.rope_scaling
    if scaling is not None and scaling.kind != "yarn":
        wrong.append((f"rope scaling is {scaling.kind}", "yarn or none, as in R1"))
    if scaling is not None and scaling.factor <= 1:
        wrong.append((f"the factor of rope scaling is {scaling.factor:g}", "a factor above 1"))
    for problem, allowed in wrong:
        raise CheckpointError(
            f"a GGUF of deepseek_v3 cannot hold this model: {problem}",
            allowed=f"llama.cpp computes deepseek2 with {allowed}",
            hint="use a released checkpoint of the family: see `tightfit models`",
        )


def deepseek2_entries(
    prefix: str, dimensions: ModelDimensions, n_mtp_layers: int = 0
) -> list[Entry]:
    """Keys beside those that every architecture has; raises like `check_deepseek2`."""
    check_deepseek2(dimensions)
    mla, moe = dimensions.mla, dimensions.moe
    assert mla is not None
    assert moe is not None
    query = [u32(f"{prefix}.attention.q_lora_rank", mla.q_lora_rank)] if mla.q_lora_rank else []
    drafts = [u32(f"{prefix}.nextn_predict_layers", n_mtp_layers)] if n_mtp_layers else []
    return [
        *query,
        u32(f"{prefix}.attention.kv_lora_rank", mla.kv_lora_rank),
        u32(f"{prefix}.attention.key_length", mla.kv_lora_rank + mla.qk_rope_head_dim),
        u32(f"{prefix}.attention.value_length", mla.kv_lora_rank),
        u32(f"{prefix}.attention.key_length_mla", dimensions.head_dim),
        u32(f"{prefix}.attention.value_length_mla", mla.v_head_dim),
        *_expert_entries(prefix, moe),
        u32(f"{prefix}.rope.dimension_count", mla.qk_rope_head_dim),
        f32(f"{prefix}.rope.freq_base", dimensions.rope_theta),
        *_yarn_entries(prefix, dimensions.rope_scaling),
        *drafts,
    ]


def _expert_entries(prefix: str, moe: MoeDimensions) -> list[Entry]:
    # llama.cpp aborts where a token may use all groups, which is no limit at all.
    limited = moe.n_groups_per_token < moe.n_groups
    groups = [
        u32(f"{prefix}.expert_group_count", moe.n_groups),
        u32(f"{prefix}.expert_group_used_count", moe.n_groups_per_token),
    ]
    return [
        u32(f"{prefix}.leading_dense_block_count", moe.n_dense_layers),
        u32(f"{prefix}.expert_feed_forward_length", moe.expert_intermediate_size),
        u32(f"{prefix}.expert_count", moe.n_routed_experts),
        u32(f"{prefix}.expert_used_count", moe.n_experts_per_token),
        u32(f"{prefix}.expert_shared_count", moe.n_shared_experts),
        *(groups if limited else []),
        f32(f"{prefix}.expert_weights_scale", moe.routed_scale),
        flag(f"{prefix}.expert_weights_norm", moe.normalized),
        u32(f"{prefix}.expert_gating_func", ExpertGatingFuncType.SIGMOID),
    ]


def _yarn_entries(prefix: str, scaling: RopeScaling | None) -> list[Entry]:
    if scaling is None:
        return []
    assert scaling.original_max_position_embeddings is not None
    factor = scaling.yarn_attention_factor
    scores = yarn_mscale(scaling.factor, scaling.mscale_all_dim or 0.0)
    if scores == factor:
        attention = [
            f32(f"{prefix}.rope.scaling.attn_factor", factor / yarn_mscale(scaling.factor))
        ]
    else:
        multiplier = (scores / factor - 1) / math.log(scaling.factor)
        attention = [
            f32(f"{prefix}.rope.scaling.attn_factor", factor),
            f32(f"{prefix}.rope.scaling.yarn_log_multiplier", multiplier),
        ]
    return [
        text(f"{prefix}.rope.scaling.type", RopeScalingType.YARN.value),
        f32(f"{prefix}.rope.scaling.factor", scaling.factor),
        u32(
            f"{prefix}.rope.scaling.original_context_length",
            scaling.original_max_position_embeddings,
        ),
        *attention,
        f32(f"{prefix}.rope.scaling.yarn_beta_fast", scaling.beta_fast),
        f32(f"{prefix}.rope.scaling.yarn_beta_slow", scaling.beta_slow),
    ]
