"""Copies to a GPU that the host does not wait for.

From pageable memory a copy waits until the driver has staged all of it. Pinned memory is read by
the GPU itself, so the host goes on: to read the next weights, or to start the work on these. The
stream keeps the order, and torch keeps the pinned memory until the copy is done ("CUDA semantics",
section "Use pinned memory buffers", in torch's documentation).
"""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device, in the type that they have: it is widened there."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
