"""Rotary position scaling: the numbers that config.json gives, in one form.

transformers 5 writes everything under `rope_parameters`; older checkpoints have `rope_theta` at
the top and the rest under `rope_scaling`, with the kind under `rope_type` or, older still, `type`.
Kinds, with s = `factor` and L = `original_max_position_embeddings`:

    linear   every frequency divided by s
    llama3   frequencies with wavelength above L/low_freq_factor divided by s, those below
             L/high_freq_factor kept, interpolated between (Llama 3.1)
    yarn     interpolation between frequencies turning `beta_slow` and `beta_fast` times in L
             tokens, and cos/sin multiplied by an attention factor (Peng et al. 2023,
             arXiv:2309.00071)
"""

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

from tightfit.calib.config import SEE_MODELS, ModelConfig
from tightfit.errors import CheckpointError

RopeKind = Literal["linear", "llama3", "yarn"]

DEFAULT_THETA = 10_000.0  # transformers' default where a config gives none
DEFAULT_BETA_FAST = 32.0  # YaRN's own recommendation, the default everywhere
DEFAULT_BETA_SLOW = 1.0
_YARN_MSCALE = 0.1  # sqrt(1/t) = 0.1 ln(s) + 1, equation 22 of the YaRN paper


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary positions are stretched beyond the context that the model was first trained on."""

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int | None = None
    """Context of the first training, in tokens; None for `linear`."""
    low_freq_factor: float | None = None
    """llama3 only."""
    high_freq_factor: float | None = None
    """llama3 only."""
    beta_fast: float = DEFAULT_BETA_FAST
    """yarn only."""
    beta_slow: float = DEFAULT_BETA_SLOW
    """yarn only."""
    attention_factor: float | None = None
    """yarn: multiplies cos and sin, in place of the value that follows from `factor`."""
    attn_factor: float | None = None
    """yarn: multiplies the value that follows from `factor`, in vLLM only.

    R1-0528-Qwen3-8B ships 1 / (0.1 ln 4 + 1), so that vLLM applies exactly 1. transformers, our
    reference, does not know the key and applies 0.1 ln 4 + 1, and `export` writes its GGUFs so that
    llama.cpp applies the same.
    """
    mscale: float | None = None
    """yarn of DeepSeek-V3: weight of ln(factor) in the factor on cos and sin."""
    mscale_all_dim: float | None = None
    """yarn of DeepSeek-V3: the same in the factor on the attention scores."""

    @property
    def yarn_attention_factor(self) -> float:
        """What transformers multiplies cos and sin by (1 for the other kinds)."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return yarn_mscale(self.factor)


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's attention factor, 0.1 * weight * ln(factor) + 1; 1 for a factor of at most 1."""
    return 1.0 if factor <= 1 else _YARN_MSCALE * weight * math.log(factor) + 1.0


def read_rope(config: ModelConfig) -> tuple[float, RopeScaling | None]:
    """Theta and the scaling of a model; raises `CheckpointError` for a kind we cannot keep."""
    section = config.section("rope_parameters")
    if section is None:
        section = config.section("rope_scaling") or ModelConfig(origin=config.origin, values={})
    theta = section.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    for place in (config, section):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(
                f"{place.origin}: 'partial_rotary_factor' is "
                f"{place.values['partial_rotary_factor']!r}",
                allowed="allowed: 1 (no model of the R1 family rotates a part of a head)",
                hint=SEE_MODELS,
            )
    kind = section.text("rope_type", section.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in get_args(RopeKind):
        raise CheckpointError(
            f"{section.origin}: the rope scaling is {kind!r}",
            allowed="allowed: default, " + ", ".join(get_args(RopeKind)),
            hint=SEE_MODELS,
        )
    return theta, _read_scaling(section, config, cast(RopeKind, kind))


def _read_scaling(section: ModelConfig, config: ModelConfig, kind: RopeKind) -> RopeScaling:
    factor = section.number("factor")
    if kind == "linear":
        return RopeScaling(kind=kind, factor=factor)
    original = section.integer(
        "original_max_position_embeddings", config.integer("max_position_embeddings")
    )
    if kind == "llama3":
        return RopeScaling(
            kind=kind,
            factor=factor,
            original_max_position_embeddings=original,
            low_freq_factor=section.number("low_freq_factor"),
            high_freq_factor=section.number("high_freq_factor"),
        )
    if not section.flag("truncate", default=True):
        raise CheckpointError(
            f"{section.origin}: 'truncate' is false",
            allowed="allowed: true (llama.cpp always rounds the range of interpolated frequencies)",
            hint=SEE_MODELS,
        )
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=section.number("beta_fast", DEFAULT_BETA_FAST),
        beta_slow=section.number("beta_slow", DEFAULT_BETA_SLOW),
        attention_factor=section.optional_number("attention_factor"),
        attn_factor=section.optional_number("attn_factor"),
        mscale=section.optional_number("mscale"),
        mscale_all_dim=section.optional_number("mscale_all_dim"),
    )
