"""What a process of the race says of itself: time and memory of the quantization alone."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint"
"""Folder of an entrant that leaves a checkpoint of its own instead."""
FIGURES = "figures.json"
KIB = 1024
_RESET_PEAK = "5"
"""What Linux takes in clear_refs to begin VmHWM anew."""


@contextmanager
def measured(output: Path) -> Iterator[None]:
    """Write CPU seconds, wall seconds and peak memory (bytes), whole and over what was held before.

    The peak is that of this process alone: no entrant has children that hold memory.
    """
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before_bytes = _status_bytes("VmRSS")
    cpu_s, wall_s = _cpu_seconds(), time.perf_counter()
    yield
    cpu_s, wall_s = _cpu_seconds() - cpu_s, time.perf_counter() - wall_s
    rss_bytes = _status_bytes("VmHWM")
    figures = {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "memory_bytes": rss_bytes - before_bytes,
        "rss_bytes": rss_bytes,
    }
    (output / FIGURES).write_text(json.dumps(figures))


def save_linears(model: nn.Module, output: Path) -> None:
    """The dequantized matrices of a model of transformers, by checkpoint name."""
    linears = block_linears(model)
    save_weights({f"{name}.weight": each.weight.detach() for name, each in linears.items()}, output)


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """All that the race quantizes: every linear but the head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def save_weights(weights: Mapping[str, Tensor], output: Path) -> None:
    """float32 matrices by checkpoint name."""
    plain = {name: weight.float().contiguous().clone() for name, weight in weights.items()}
    save_file(plain, output / WEIGHTS)


def arguments() -> tuple[Path, Path, int]:
    """Model folder, output folder and number of sequences, as every entrant is called."""
    _, model, output, n_sequences = sys.argv
    return Path(model), Path(output), int(n_sequences)


def use_threads() -> None:
    """As many torch threads as the race gives every entrant."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) * KIB


def _cpu_seconds() -> float:
    own, children = (
        resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return sum((of.ru_utime + of.ru_stime for of in (own, children)), 0.0)
