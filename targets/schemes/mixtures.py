"""Schemes for a mixture of experts: the routed experts on few bits, everything else on many.

    experts-Q       routed experts on Q, one of ggml's grids in lower case; everything else Q8_0
    dynamic-q2_k    routed experts Q2_K, down_proj Q3_K in the first layers; everything else Q6_K
    dynamic-q3_k    routed experts Q3_K, down_proj Q4_K in the first layers; everything else Q6_K

Of R1's 671 billion weights 654 are routed experts, of which a token reads 8 in 256. So they decide
what a file takes, and attention, shared experts, dense layers, embedding and head can have 6 or 8
bits for a quarter of a bit per weight. `first` is the first eighth of the layers with experts,
rounded up (R1: 3 to 10): llama.cpp gives ffn_down of the first eighth of the layers a higher type
in its Q4_K_S files, and others found the same of R1 (docs/targets.md names them).

Norms, biases and routers are F32. Super-blocks have 256 weights: where a row is no multiple of
that (R1: k_b, 128 wide), Q8_0 stands in for Q6_K, as in llama.cpp. The experts' own grid has no
stand-in: the scheme is named after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import ANY_EXPERT
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.errors import QuantizationError, UsageError
from tightfit.targets.schemes.ggml_types import (
    FALLBACKS,
    GGML_GRIDS,
    block_weights,
    fitting_type,
)
from tightfit.targets.schemes.ggml_types import GgmlType as Type

_EXPERTS = "experts-"
_DYNAMIC = "dynamic-"
_FIRST_PART = 8
"""The first layers are this part of those with experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureScheme:
    """What a mixture of experts is stored as."""

    name: str
    experts: Type
    """Of the routed experts."""
    first_down: Type
    """Of their down_proj in the first layers."""
    beside: Type
    """Of every other matrix but the routers."""

    def storage(self, architecture: Architecture, dimensions: ModelDimensions) -> dict[str, str]:
        """Grid name or `F32` of every tensor by checkpoint name, in the model's order.

        Raises `UsageError` for a model without experts and `QuantizationError` when a width fits
        neither the grid nor what stands in for it.
        """
        if dimensions.moe is None:
            raise UsageError(
                f"{self.name} is for a mixture of experts, and a {dimensions.model_type} has none",
                allowed="models with routed experts: DeepSeek-R1, R1-Zero, R1-0528",
                hint="--scheme auto or a file type such as q4_k_m is for all models",
            )
        shapes = tensor_shapes(architecture, dimensions)
        first = _first_layers(dimensions.n_layers, dimensions.moe.n_dense_layers)
        higher = {
            architecture.tensor(layer, f"mlp.experts.{ANY_EXPERT}.down_proj.weight")
            for layer in first
        }
        routing = {
            architecture.tensor(layer, parameter)
            for layer in range(dimensions.n_layers)
            for parameter in architecture.block_kind(layer, dimensions).routing
        }

        def assigned(name: str, shape: Shape) -> Type:
            if len(shape) == 1 or name in routing:
                return Type.F32
            if f".{ANY_EXPERT}." not in name:
                return fitting_type(self.beside, shape[-1])
            wanted = self.first_down if name in higher else self.experts
            self._check_width(name, shape, wanted)
            return wanted

        return {name: assigned(name, shape).name for name, shape in shapes.items()}

    def _check_width(self, name: str, shape: Shape, wanted: Type) -> None:
        block = block_weights(wanted)
        if shape[-1] % block == 0:
            return
        instead = FALLBACKS.get(self.experts, Type.Q8_0).name.lower()
        raise QuantizationError(
            f"{self.name} cannot hold {name} of shape {shape}: its width {shape[-1]} is not a "
            f"multiple of {block}",
            allowed=f"{wanted.name} takes widths that are multiples of {block}",
            hint=f"--scheme {_EXPERTS}{instead} has blocks of 32 weights",
        )


DYNAMIC: Mapping[str, MixtureScheme] = {
    scheme.name: scheme
    for scheme in (
        MixtureScheme(
            name=f"{_DYNAMIC}q3_k", experts=Type.Q3_K, first_down=Type.Q4_K, beside=Type.Q6_K
        ),
        MixtureScheme(
            name=f"{_DYNAMIC}q2_k", experts=Type.Q2_K, first_down=Type.Q3_K, beside=Type.Q6_K
        ),
    )
}
"""By name, largest first."""
LISTED_MIXTURES = (f"{_EXPERTS}q6_k", f"{_EXPERTS}q5_k", f"{_EXPERTS}q4_k", *DYNAMIC)
"""What a plan weighs for a mixture of experts beside the file types."""
MIXTURE_NAMES = f"{_EXPERTS}GRID with one of {', '.join(GGML_GRIDS).lower()}; {', '.join(DYNAMIC)}"
"""All names, for people."""


def is_mixture_name(name: str) -> bool:
    """Whether a scheme of that name (in lower case) is meant for a mixture of experts."""
    return name.startswith((_EXPERTS, _DYNAMIC))


def parse_mixture(name: str) -> MixtureScheme:
    """The scheme of that name, in lower case; raises `UsageError` for what does not exist."""
    if name in DYNAMIC:
        return DYNAMIC[name]
    grid = name.removeprefix(_EXPERTS).upper()
    if not name.startswith(_EXPERTS) or grid not in GGML_GRIDS:
        raise UsageError(
            f"{name!r} is not a scheme for a mixture of experts",
            allowed=f"schemes: {MIXTURE_NAMES}",
            hint=f"--scheme {_EXPERTS}q4_k keeps everything but the routed experts at 8 bits",
        )
    kind = Type[grid]
    return MixtureScheme(name=name, experts=kind, first_down=kind, beside=Type.Q8_0)


def _first_layers(n_layers: int, n_dense_layers: int) -> range:
    """The layers whose down_proj is stored higher."""
    n_mixture_layers = n_layers - n_dense_layers
    return range(n_dense_layers, n_dense_layers + -(-n_mixture_layers // _FIRST_PART))
