"""DeepSeek-V3 (R1, R1-Zero, R1-0528): latent attention and a mixture of experts, as data.

Attention (arXiv:2412.19437, section 2.1.1) goes through two latents. `q_b_proj` reads the normed
query latent; `kv_b_proj` reads the normed latent of keys and values, which is what a cache holds:

    q = q_b norm(q_a x)        k = K norm(kv_a x), rope(kv_a x)        v = V norm(kv_a x)

A multi-token-prediction layer (section 2.2) follows the last one and is numbered on, 61 in R1: a
block that reads eh_proj [enorm(embedding of the next token), hnorm(hidden)], with a norm and copies
of embedding and head. No logits of the model depend on it.

Logical tensors, where they differ from the checkpoint's (as llama.cpp's `deepseek2` stores them):

    mlp.experts.*.gate_proj.weight    (experts, O, I): the matrices of all routed experts of a
        (and up_proj, down_proj)      layer, `mlp.experts.0.gate_proj.weight` and so on; a GGUF
                                      merges them, so they share one type
    self_attn.k_b_proj.weight         (heads, latent, nope): the key rows K of each head of
                                      `kv_b_proj`, transposed, as the runtime applies them to the
                                      queries: (K c) q = c (K^T q)
    self_attn.v_b_proj.weight         (heads, value, latent): its value rows V

So k_b's rows lie along the latent and its columns along the part of a query head without rope,
which is what it reads when a cache holds latents; the expanded form never reads it.

Folding: where the latent is divided by a scale, v_b's columns and k_b's rows are multiplied. Where
the input of the experts is, so are the router's columns, which are on no grid; its scores stay.
"""

from tightfit.calib.family import (
    DENSE,
    DIRECT_QUERY,
    MIXTURE,
    Architecture,
    BlockKind,
    FoldKind,
    Input,
)

_QUERY_LATENT_INPUTS = (
    Input(
        name="attn_in",
        linears=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        fold_kind=FoldKind.NORM,
        fold_into="input_layernorm",
    ),
    Input(
        name="q_latent",
        linears=("self_attn.q_b_proj",),
        fold_kind=FoldKind.NORM,
        fold_into="self_attn.q_a_layernorm",
    ),
)
_DIRECT_QUERY_INPUTS = (
    Input(
        name="attn_in",
        linears=("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"),
        fold_kind=FoldKind.NORM,
        fold_into="input_layernorm",
    ),
)
_KV_INPUTS = (
    Input(
        name="kv_latent",
        linears=("self_attn.v_b_proj",),
        fold_kind=FoldKind.NORM,
        fold_into="self_attn.kv_a_layernorm",
        scaled_rows=("self_attn.k_b_proj",),
    ),
    # The part of the queries without rope, head by head; its producer's rows could absorb a scale,
    # but k_b is a twentieth of the attention.
    Input(name="q_nope", linears=("self_attn.k_b_proj",)),
    Input(
        name="attn_out",
        linears=("self_attn.o_proj",),
        fold_kind=FoldKind.LINEAR,
        fold_into="self_attn.v_b_proj",
    ),
)
_DENSE_MLP_INPUTS = (
    Input(
        name="mlp_in",
        linears=("mlp.gate_proj", "mlp.up_proj"),
        fold_kind=FoldKind.NORM,
        fold_into="post_attention_layernorm",
    ),
    Input(
        name="mlp_mid",
        linears=("mlp.down_proj",),
        fold_kind=FoldKind.LINEAR,
        fold_into="mlp.up_proj",
    ),
)
_MIXTURE_INPUTS = (
    Input(
        name="mlp_in",
        linears=(
            "mlp.shared_experts.gate_proj",
            "mlp.shared_experts.up_proj",
            "mlp.experts.*.gate_proj",
            "mlp.experts.*.up_proj",
        ),
        fold_kind=FoldKind.NORM,
        fold_into="post_attention_layernorm",
        scaled_columns=("mlp.gate",),
    ),
    Input(
        name="shared_mid",
        linears=("mlp.shared_experts.down_proj",),
        fold_kind=FoldKind.LINEAR,
        fold_into="mlp.shared_experts.up_proj",
    ),
    Input(
        name="expert_mid",
        linears=("mlp.experts.*.down_proj",),
        fold_kind=FoldKind.LINEAR,
        fold_into="mlp.experts.*.up_proj",
    ),
)

_NORM_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_QUERY_LATENT_NAMES = {
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
}
_DIRECT_QUERY_NAMES = {"self_attn.q_proj.weight": "attn_q.weight"}
_KV_NAMES = {
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.k_b_proj.weight": "attn_k_b.weight",
    "self_attn.v_b_proj.weight": "attn_v_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
_DENSE_MLP_NAMES = {
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_ROUTER_NAMES = {
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
_EXPERT_NAMES = {
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.experts.*.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.*.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.*.down_proj.weight": "ffn_down_exps.weight",
}
_MTP_NAMES = {
    "embed_tokens.weight": "nextn.embed_tokens.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    "shared_head.head.weight": "nextn.shared_head_head.weight",
}


def _dense(query_inputs: tuple[Input, ...], query_names: dict[str, str]) -> BlockKind:
    return BlockKind(
        inputs=query_inputs + _KV_INPUTS + _DENSE_MLP_INPUTS,
        gguf_names=_NORM_NAMES | query_names | _KV_NAMES | _DENSE_MLP_NAMES,
    )


def _mixture(query_inputs: tuple[Input, ...], query_names: dict[str, str]) -> BlockKind:
    return BlockKind(
        inputs=query_inputs + _KV_INPUTS + _MIXTURE_INPUTS,
        gguf_names=_NORM_NAMES | query_names | _KV_NAMES | _ROUTER_NAMES | _EXPERT_NAMES,
        routing=frozenset(_ROUTER_NAMES),
    )


DEEPSEEK_V3 = Architecture(
    model_type="deepseek_v3",
    gguf_arch="deepseek2",
    blocks={
        DENSE: _dense(_QUERY_LATENT_INPUTS, _QUERY_LATENT_NAMES),
        MIXTURE: _mixture(_QUERY_LATENT_INPUTS, _QUERY_LATENT_NAMES),
        DENSE + DIRECT_QUERY: _dense(_DIRECT_QUERY_INPUTS, _DIRECT_QUERY_NAMES),
        MIXTURE + DIRECT_QUERY: _mixture(_DIRECT_QUERY_INPUTS, _DIRECT_QUERY_NAMES),
    },
    mtp_names=_MTP_NAMES,
    mtp_copies={
        "embed_tokens.weight": "model.embed_tokens.weight",
        "shared_head.head.weight": "lm_head.weight",
    },
)
