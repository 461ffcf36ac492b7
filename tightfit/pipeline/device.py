"""The device that torch computes on."""

import torch

from tightfit.errors import UsageError


def usable_device(name: str) -> torch.device:
    """The device of that name; raises `UsageError` when this torch cannot compute on it."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        # torch appends its C++ stack on some builds: the first line says what is wrong.
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"torch cannot use the device {name!r}: {reason}",
            allowed="cpu, cuda, cuda:0 ... as this torch build supports",
            hint="leave --device out to run on the CPU",
        ) from error
