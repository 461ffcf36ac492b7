"""The predicted loss of every tensor on every grid before anything is calibrated: a rough guess.

A linear whose weights have relative noise e gives outputs of relative noise e, however many weights
it has, and the KL divergence is quadratic in that error. So a role (all `q_proj` of a model, say)
counts by the mean noise over its layers:

    KL  =  c  sum_role  weight[role]  mean_layers noise[grid]
    loss of one tensor  =  c  weight[role]  noise[grid] / layers

with the noise of `tightfit.targets.allocation.noise`. The embedding and the head are roles of one
layer; a tied head is both. In a layer with a mixture of experts the routed and the shared experts
stand for one MLP, each by the part that it has in the variance of the sum (`_routed_share`).

Two constants are fitted, c and the weight of the heavy roles; docs/allocation.md has the data, the
residuals and how far off the guess is for other models: up to a factor of four on ordinary text.
After calibration measured losses take its place.
"""

from collections.abc import Mapping
from types import MappingProxyType

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions, MoeDimensions
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.targets.allocation.noise import RELATIVE_NOISE
from tightfit.targets.allocation.roles import EMBEDDING, HEAD, role_of
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.grids import FLOAT_BYTES

_NATS_PER_NOISE = 0.64
"""c: fitted to eight file types of Llama 3 8B (llama.cpp, tools/perplexity/README.md)."""
_HEAVY_WEIGHT = 3.0
"""Of v, up, down and head; q, k, o, gate and the embedding weigh 1. Between what SmolLM2 shows role
by role (about 5) and tiny-r1 (about 1); Llama 3 8B's file types hardly tell them apart."""
_HEAVY_ENDINGS = ("v_proj", "v_b_proj", "kv_a_proj_with_mqa", "up_proj", "down_proj")
_ROUTER = "mlp.gate"
"""Never quantized."""
_ROUTED = "mlp.experts."
_SHARED = "mlp.shared_experts."


def prior_sensitivity(architecture: Architecture, dimensions: ModelDimensions) -> Sensitivity:
    """Predicted losses of all matrices but the routers, on all grids."""
    losses: dict[str, Mapping[str, float]] = {}
    by_weight: dict[float, Mapping[str, float]] = {}
    for name, shape in tensor_shapes(architecture, dimensions).items():
        role = role_of(architecture, name)
        if not _is_quantized(role, shape):
            continue
        weight = _tensor_weight(role, dimensions)
        # Equal layers share one table.
        if weight not in by_weight:
            by_weight[weight] = _table(weight)
        losses[name] = by_weight[weight]
    return Sensitivity(losses=losses, corrections={}, measured=(), n_tokens=0)


def _is_quantized(role: str, shape: Shape) -> bool:
    return len(shape) > 1 and role != _ROUTER


def _table(weight: float) -> Mapping[str, float]:
    return MappingProxyType(
        {
            grid: _NATS_PER_NOISE * weight * noise
            for grid, noise in RELATIVE_NOISE.items()
            if grid not in FLOAT_BYTES
        }
    )


def _tensor_weight(role: str, dimensions: ModelDimensions) -> float:
    """Weight of one tensor of a role: the role's, over its layers."""
    if role == HEAD:
        return _HEAVY_WEIGHT
    if role == EMBEDDING:
        return 1.0 + (_HEAVY_WEIGHT if dimensions.tie_word_embeddings else 0.0)
    weight = _HEAVY_WEIGHT if role.endswith(_HEAVY_ENDINGS) else 1.0
    if dimensions.moe is not None and role.startswith((_ROUTED, _SHARED)):
        routed = _routed_share(dimensions.moe)
        weight *= routed if role.startswith(_ROUTED) else 1.0 - routed
    return weight / dimensions.n_layers


def _routed_share(moe: MoeDimensions) -> float:
    """Part of the routed experts in the variance of a mixture's output.

    For experts of like, independent outputs: a token adds k routed ones, each times s / k, and the
    shared ones, each times 1. So s^2 / k stands against the number of shared experts; how many
    experts there are to choose from has no influence.
    """
    routed = moe.routed_scale**2 / moe.n_experts_per_token
    return routed / (routed + moe.n_shared_experts)
