"""Copies to a device: on the CPU none, and what torch is asked for where there is a GPU."""

import torch

from tightfit.calib.transfer import to_device


class OnHost:
    """Stands for a tensor in host memory, and notes what is asked of it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list[object] = []

    def pin_memory(self) -> "OnHost":
        self.asked.append("pin")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "OnHost":
        self.asked.append((device.type, non_blocking))
        return self


def test_a_gpu_reads_pinned_memory_while_the_host_goes_on() -> None:
    values = OnHost()
    to_device(values, torch.device("cuda"))  # type: ignore[arg-type]
    assert values.asked == ["pin", ("cuda", True)]


def test_elsewhere_nothing_is_pinned() -> None:
    values = OnHost()
    to_device(values, torch.device("meta"))  # type: ignore[arg-type]
    assert values.asked == [("meta", False)]
    here = torch.ones(3, dtype=torch.bfloat16)
    assert to_device(here, torch.device("cpu")) is here
