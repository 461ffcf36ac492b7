"""The sizes of a synthetic DeepSeek-V3 checkpoint, and its config.json with R1's keys."""

from dataclasses import dataclass

from benchmarks.r1_numbers import BLOCK

R1_MAX_GROUPS = 8
R1_EXPERTS_PER_TOKEN = 8
R1_DENSE_FACTOR = 9
"""R1's dense MLPs are nine experts wide: the eight that a token visits and the shared one."""
R1_SHARD_BYTES = 4_300_000_000
"""The size of most of R1's 163 shards."""
GROUP_EXPERTS = 4
"""Experts of a group where there are too few for eight groups."""


_R1_CONFIG: dict[str, object] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_layer_freq": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
}
"""R1's own values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedR1:
    """The sizes of a synthetic checkpoint; those that are not given follow R1's proportions."""

    n_layers: int
    n_experts: int
    hidden: int
    moe_intermediate: int
    n_dense_layers: int = 1
    n_mtp_layers: int = 1
    n_heads: int = 8
    q_lora_rank: int = 512
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    vocab: int = 512
    n_cold_experts: int = 1
    """Experts of each mixture layer that no token visits."""
    shard_bytes: int = R1_SHARD_BYTES
    """Tensors of a shard at most, unless a single one is larger."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that leave a token fewer experts than it visits."""
        reachable = self._experts_in_reach - self.n_cold_experts
        assert self.n_experts % self.n_groups == 0, self
        assert reachable >= self.experts_per_token, self
        assert self.n_dense_layers <= self.n_layers, self

    @property
    def intermediate(self) -> int:
        """Width of a dense MLP."""
        return R1_DENSE_FACTOR * self.moe_intermediate

    @property
    def n_groups(self) -> int:
        """R1's eight, or groups of four where there are few experts."""
        return max(1, min(R1_MAX_GROUPS, self.n_experts // GROUP_EXPERTS))

    @property
    def n_groups_per_token(self) -> int:
        """Half of them, as in R1."""
        return max(1, self.n_groups // 2)

    @property
    def experts_per_token(self) -> int:
        """R1's eight, or half of the experts of a token's groups where there are few."""
        return max(1, min(R1_EXPERTS_PER_TOKEN, self._experts_in_reach // 2))

    @property
    def _experts_in_reach(self) -> int:
        return self.n_groups_per_token * self.n_experts // self.n_groups

    def cold_experts(self, layer: int) -> tuple[int, ...]:
        """Experts of a layer that no token visits; others in the next layer."""
        apart = self.n_experts // max(1, self.n_cold_experts)
        return tuple(
            (layer + number * apart) % self.n_experts for number in range(self.n_cold_experts)
        )

    def config(self) -> dict[str, object]:
        """What config.json says."""
        return _R1_CONFIG | {
            "bos_token_id": 506,
            "eos_token_id": 507,
            "first_k_dense_replace": self.n_dense_layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "kv_lora_rank": self.kv_lora_rank,
            "moe_intermediate_size": self.moe_intermediate,
            "n_group": self.n_groups,
            "n_routed_experts": self.n_experts,
            "num_attention_heads": self.n_heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_heads,
            "num_nextn_predict_layers": self.n_mtp_layers,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "topk_group": self.n_groups_per_token,
            "v_head_dim": self.v_head_dim,
            "vocab_size": self.vocab,
        }
