"""How long `tightfit plan` takes: one process a model, start-up and imports included."""

import statistics
import subprocess
import sys
import time

from tightfit.calib.models import MODELS

ROUNDS = 5
TARGET = "a100x8-80gb"
"""Has room for all ten, and eight devices to place layers on."""


def plan_table() -> str:
    """Seconds by model, as Markdown."""
    lines = ["| model | median (s) | slowest (s) |", "|---|---:|---:|"]
    for model in MODELS.values():
        seconds = [_seconds(model.name) for _ in range(ROUNDS)]
        lines.append(f"| {model.name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    return "\n".join(lines) + "\n"


def _seconds(model: str) -> float:
    command = [sys.executable, "-m", "tightfit", "plan", model, "--target", TARGET, "--json"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
