"""The sizes of a model, read from config.json: enough to plan memory and to know every shape."""

from dataclasses import dataclass

from tightfit.calib.config import SEE_MODELS, ModelConfig
from tightfit.calib.rope import RopeScaling, read_rope
from tightfit.errors import CheckpointError

_DEEPSEEK_V3 = "deepseek_v3"
"""Always has latent attention and experts: a config without them was cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaDimensions:
    """Multi-head latent attention of DeepSeek-V3: what is cached is a latent, not keys and values.

    (arXiv:2412.19437, section 2.1.1)
    """

    q_lora_rank: int | None
    """None: queries come from one q_proj instead of a latent."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool = True
    """Whether rotary pairs lie side by side, as in every released DeepSeek-V3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeDimensions:
    """Mixture of experts of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2)."""

    n_routed_experts: int
    n_shared_experts: int
    n_experts_per_token: int
    expert_intermediate_size: int
    n_dense_layers: int
    """Leading layers that keep a dense MLP (`first_k_dense_replace`)."""
    n_groups: int
    """Groups that the router chooses from."""
    n_groups_per_token: int
    """Groups that a token may use (`topk_group`)."""
    routed_scale: float
    """Factor on the routed experts' sum (`routed_scaling_factor`)."""
    normalized: bool = True
    """Whether the chosen experts' scores are divided by their sum (`norm_topk_prob`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDimensions:
    """The sizes of a decoder."""

    model_type: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    """Width of a query or key head; under MLA the sum of its two parts."""
    intermediate_size: int
    """Width of a dense MLP."""
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer has tokens."""
    max_position_embeddings: int
    """Longest context, in tokens."""
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Whether q, k, v and o have biases where the family leaves that to the config."""
    mla: MlaDimensions | None = None
    moe: MoeDimensions | None = None
    n_mtp_layers: int = 0
    """Multi-token-prediction layers after the last one, which no runtime here uses."""

    @property
    def q_width(self) -> int:
        """Rows of q_proj and columns of o_proj."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Rows of k_proj and of v_proj."""
        return self.n_kv_heads * self.head_dim


def dimensions_of(config: ModelConfig) -> ModelDimensions:
    """The sizes that a config.json gives; raises `CheckpointError` for what cannot be kept."""
    _check_plain(config)
    rope_theta, rope_scaling = read_rope(config)
    mla = _read_mla(config)
    hidden_size = config.integer("hidden_size")
    n_heads = config.integer("num_attention_heads")
    n_kv_heads = config.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise CheckpointError(
            f"{config.origin}: {n_heads} attention heads share {n_kv_heads} key-value heads",
            allowed="num_attention_heads must be a multiple of num_key_value_heads",
            hint="config.json is damaged or was edited by hand: download it again",
        )
    if mla:
        head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    else:
        head_dim = config.integer("head_dim", hidden_size // n_heads)
    return ModelDimensions(
        model_type=config.text("model_type"),
        hidden_size=hidden_size,
        n_layers=config.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=config.flag("tie_word_embeddings", default=False),
        attention_bias=config.flag("attention_bias", default=False),
        mla=mla,
        moe=_read_moe(config),
        n_mtp_layers=config.count("num_nextn_predict_layers", 0),
    )


def _check_plain(config: ModelConfig) -> None:
    """Refuse what the family can do in transformers but an artifact cannot hold."""
    if config.text("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"{config.origin}: 'hidden_act' is {config.text('hidden_act')!r}",
            allowed="allowed: silu",
            hint=SEE_MODELS,
        )
    if config.flag("use_sliding_window", default=False):
        raise CheckpointError(
            f"{config.origin}: 'use_sliding_window' is true",
            allowed="allowed: false (llama.cpp would run these families with full attention)",
            hint=SEE_MODELS,
        )
    if config.flag("mlp_bias", default=False):
        raise CheckpointError(
            f"{config.origin}: 'mlp_bias' is true",
            allowed="allowed: false, as in the R1 family",
            hint=SEE_MODELS,
        )

    if config.text("model_type") == "qwen3" and config.flag("attention_bias", default=False):
        raise CheckpointError(
            f"{config.origin}: 'attention_bias' is true",
            allowed="allowed with qwen3: false, as in every released Qwen3",
            hint=SEE_MODELS,
        )


def _read_mla(config: ModelConfig) -> MlaDimensions | None:
    if config.text("model_type") != _DEEPSEEK_V3 and not config.optional_integer("kv_lora_rank"):
        return None
    return MlaDimensions(
        q_lora_rank=config.optional_integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=config.integer("qk_nope_head_dim"),
        qk_rope_head_dim=config.integer("qk_rope_head_dim"),
        v_head_dim=config.integer("v_head_dim"),
        rope_interleave=config.flag("rope_interleave", default=True),
    )


def _read_moe(config: ModelConfig) -> MoeDimensions | None:
    if config.text("model_type") != _DEEPSEEK_V3 and not config.optional_integer(
        "n_routed_experts"
    ):
        return None
    _check_router(config)
    moe = MoeDimensions(
        n_routed_experts=config.integer("n_routed_experts"),
        n_shared_experts=config.count("n_shared_experts", 0),
        n_experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=config.integer("moe_intermediate_size"),
        n_dense_layers=config.count("first_k_dense_replace", 0),
        n_groups=config.integer("n_group", 1),
        n_groups_per_token=config.integer("topk_group", 1),
        routed_scale=config.number("routed_scaling_factor", 1.0),
        normalized=config.flag("norm_topk_prob", default=True),
    )
    _check_groups(config, moe)
    return moe


def _check_router(config: ModelConfig) -> None:
    """Refuse other routers than R1's: transformers reads none of these keys."""
    for key, only in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if config.text(key, only) != only:
            raise CheckpointError(
                f"{config.origin}: {key!r} is {config.text(key)!r}",
                allowed=f"allowed: {only}, as in R1",
                hint=SEE_MODELS,
            )
    if config.integer("moe_layer_freq", 1) != 1:
        raise CheckpointError(
            f"{config.origin}: 'moe_layer_freq' is {config.integer('moe_layer_freq')}",
            allowed="allowed: 1, every layer after the dense ones, as in R1",
            hint=SEE_MODELS,
        )


def _check_groups(config: ModelConfig, moe: MoeDimensions) -> None:
    """Refuse numbers that no token could be routed by; a group is judged by its best two."""
    size, rest = divmod(moe.n_routed_experts, moe.n_groups)
    reach = moe.n_groups_per_token * size
    possible = moe.n_groups_per_token <= moe.n_groups and moe.n_experts_per_token <= reach
    if rest or size < 2 or not possible:
        raise CheckpointError(
            f"{config.origin}: a token visits {moe.n_experts_per_token} of {moe.n_routed_experts} "
            f"experts, in {moe.n_groups_per_token} of {moe.n_groups} groups",
            allowed="groups of equal size, 2 experts or more, that hold as many as a token visits",
            hint="config.json is damaged or was edited by hand: download it again",
        )
