"""How long commands that read no weights take: one process a call, imports included."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from tightfit.calib.models import MODELS

_ROUNDS: Final = 5
_TARGET: Final = "a100x8-80gb"
"""Has room for all ten, and eight devices to place layers on."""
_TIGHT: Final = "rtx3060-8gb"
"""Has not, so the allocator works."""


def start_up_table() -> str:
    """Seconds by command, as Markdown."""
    commands = [
        ("--help",),
        ("targets",),
        ("plan", "r1-distill-qwen-7b", "--target", _TIGHT),
        *(("plan", model, "--target", _TARGET) for model in MODELS),
    ]
    lines = ["| command | median (s) | slowest (s) |", "|---|---:|---:|"]
    for command in commands:
        seconds = [_seconds(command) for _ in range(_ROUNDS)]
        shown = " ".join(("tightfit", *command))
        lines.append(f"| `{shown}` | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    return "\n".join(lines) + "\n"


def _seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "tightfit", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
