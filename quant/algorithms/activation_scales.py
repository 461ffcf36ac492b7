"""How a runtime quantizes the activations of an FP8 (W8A8) linear.

Static: one scale per tensor from calibration, x = scale * value(code) with scale = absmax / 448.
Dynamic: the runtime takes the scale of each token itself; only that choice is recorded.
Source: compressed-tensors' `input_activations` of its FP8 schemes; NVIDIA ModelOpt `input_scale`.
"""

import math
from dataclasses import dataclass

from tightfit.errors import CalibrationError
from tightfit.quant.grids.float8 import E4M3_MAX


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationScale:
    """The recorded choice for one input."""

    scale: float | None
    """Multiplier of the E4M3 values; None: dynamic, one per token at run time."""

    @property
    def dynamic(self) -> bool:
        """Whether the runtime finds the scale."""
        return self.scale is None


DYNAMIC = ActivationScale(scale=None)


def static_activation_scale(abs_max: float) -> ActivationScale:
    """The scale that puts the largest calibrated magnitude at 448.

    Raises `CalibrationError` when it is not a positive finite number.
    """
    if not (math.isfinite(abs_max) and abs_max > 0):
        raise CalibrationError(
            f"an activation scale cannot be taken from a largest magnitude of {abs_max}",
            allowed="a positive finite number",
            hint="check that calibration reached this input, or use dynamic activation scales",
        )
    return ActivationScale(scale=abs_max / E4M3_MAX)
