"""Weights that were scaled before they were rounded, as AWQ does, back on the model's own scale.

A scale s per input channel and t per row make W into diag(t) W diag(s), which is what is rounded.
`score` compares every entrant with W under the model's own inputs, so what was rounded is divided
by the same factors, element by element: by scaled / original. A weight that is exactly 0 does not
tell its factor; there are a few in a random model, and they are left as rounded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def unscaled(
    rounded: Mapping[str, Tensor], scaled: Mapping[str, Tensor], original: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`rounded` as if it stood beside `original`; all float32, by checkpoint name."""
    return {
        name: torch.where(scaled[name] == 0, weight, weight * original[name] / scaled[name])
        for name, weight in rounded.items()
    }
