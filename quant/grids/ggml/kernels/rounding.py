"""Codes of many weights in one pass: in torch each step of it would be a pass through memory."""

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grid import Lattice, Steps
from tightfit.quant.grids.ggml.kernels.compiled import ZERO, clamped, exact
from tightfit.quant.grids.ggml.kernels.weigh import Array


def round_weights(w_OK: Tensor, lattice: Lattice, steps: Steps) -> Tensor:
    """uint8 (O, K) on the CPU, for a lattice without zero points; see `Steps`."""
    codes_OK = torch.empty_like(w_OK, dtype=torch.uint8, memory_format=torch.contiguous_format)
    offset_OK = lattice.offset_OK
    assert steps.zero is not None
    _round_weights(
        w_OK.contiguous().numpy().reshape(-1),
        lattice.scale_OK.expand_as(w_OK).contiguous().numpy().reshape(-1),
        None if offset_OK is None else offset_OK.expand_as(w_OK).contiguous().numpy().reshape(-1),
        np.float32(steps.zero),
        np.float32(steps.top_code),
        codes_OK.numpy().reshape(-1),
    )
    return codes_OK


@exact
def _round_weights(
    w_N: Array,
    scale_N: Array,
    offset_N: Array | None,
    zero: np.float32,
    top_code: np.float32,
    codes_N: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
) -> None:
    for n in range(len(w_N)):
        shifted = w_N[n] if offset_N is None else w_N[n] - offset_N[n]
        step = np.rint(shifted / scale_N[n]) if scale_N[n] != ZERO else ZERO
        codes_N[n] = np.uint8(clamped(step + zero, ZERO, top_code))
