"""The dense families of the distilled checkpoints: Qwen2, Qwen3 and Llama."""

from tightfit.calib.family import DENSE, Architecture, BlockKind, FoldKind, Input

_INPUTS = (
    Input(
        name="attn_in",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        fold_kind=FoldKind.NORM,
        fold_into="input_layernorm",
    ),
    Input(
        name="attn_out",
        linears=("self_attn.o_proj",),
        fold_kind=FoldKind.GROUPED_VALUE,
        fold_into="self_attn.v_proj",
    ),
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

_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_BIAS_NAMES = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
}
_QK_NORM_NAMES = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}

QWEN2 = Architecture(
    model_type="qwen2",
    gguf_arch="qwen2",
    blocks={
        DENSE: BlockKind(
            inputs=_INPUTS,
            gguf_names=_NAMES
            | {name: gguf for name, gguf in _BIAS_NAMES.items() if "o_proj" not in name},
        )
    },
)
QWEN3 = Architecture(
    model_type="qwen3",
    gguf_arch="qwen3",
    blocks={DENSE: BlockKind(inputs=_INPUTS, gguf_names=_NAMES | _QK_NORM_NAMES)},
)
LLAMA = Architecture(
    model_type="llama",
    gguf_arch="llama",
    permute_rope=True,
    blocks={
        DENSE: BlockKind(
            inputs=_INPUTS,
            gguf_names=_NAMES | _BIAS_NAMES,
            optional=frozenset(_BIAS_NAMES),
        )
    },
)
