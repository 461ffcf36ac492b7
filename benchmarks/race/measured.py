"""What a process of the race says of itself: time and memory of the quantization alone."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
FIGURES = "figures.json"
KIB = 1024


@contextmanager
def measured(output: Path) -> Iterator[None]:
    """Write CPU seconds, wall seconds and peak memory over what was there before (bytes)."""
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    cpu_s, wall_s = _cpu_seconds(), time.perf_counter()
    yield
    cpu_s, wall_s = _cpu_seconds() - cpu_s, time.perf_counter() - wall_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB - before_bytes
    figures = {"cpu_s": cpu_s, "wall_s": wall_s, "memory_bytes": peak_bytes}
    (output / FIGURES).write_text(json.dumps(figures))


def save_linears(model: nn.Module, output: Path) -> None:
    """The dequantized matrices of a model of transformers, by checkpoint name."""
    save_weights(
        {
            f"{name}.weight": module.weight.detach()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        },
        output,
    )


def save_weights(weights: dict[str, Tensor], output: Path) -> None:
    """float32 matrices by checkpoint name."""
    plain = {name: weight.float().contiguous().clone() for name, weight in weights.items()}
    save_file(plain, output / WEIGHTS)


def arguments() -> tuple[Path, Path, int]:
    """Model folder, output folder and number of sequences, as every entrant is called."""
    _, model, output, n_sequences = sys.argv
    return Path(model), Path(output), int(n_sequences)


def _cpu_seconds() -> float:
    own, children = (
        resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return sum((of.ru_utime + of.ru_stime for of in (own, children)), 0.0)
