"""ONNX from a 1.5B-shaped checkpoint: time and memory of our export, and of genai's builder.

    python -m benchmarks.onnx_export

Both make an INT4 file of groups of 32 by rounding to nearest, for onnxruntime on the CPU, from the
same checkpoint with random weights, one after the other. Ours also passes calibration sequences
through the model and reads the file back bit for bit. One process a run, imports included.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODEL = "r1-distill-qwen-1.5b"
KIB_PER_GB = 1e9 / 1024
"""Linux counts the peak in KiB."""
BYTES_PER_GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one process cost."""

    cpu_s: float
    peak_gb: float
    file_gb: float


def onnx_export_table() -> str:
    """The comparison as a Markdown table."""
    lines = ["| | CPU s | peak memory (GB) | files (GB) |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        # A child's largest resident set counts that of its parent before the exec: stay small.
        make = [sys.executable, "-m", "benchmarks.shaped", MODEL, str(checkpoint)]
        subprocess.run(make, check=True)
        for name, command in (("tightfit export", _ours), ("onnxruntime-genai builder", _genai)):
            output = Path(folder) / name.split()[0]
            run = _measure(command(checkpoint, output), output)
            lines.append(f"| {name} | {run.cpu_s:.0f} | {run.peak_gb:.2f} | {run.file_gb:.2f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _ours(checkpoint: Path, output: Path) -> list[str]:
    arguments = ["export", str(checkpoint), "-t", "cpu-16gb", "--format", "onnx", "-o", str(output)]
    arguments += ["--scheme", "rtn-int4-g32", "--head", "int4-g32", "--calib-samples", "4"]
    return [sys.executable, "-m", "tightfit", *arguments]


def _genai(checkpoint: Path, output: Path) -> list[str]:
    module = "onnxruntime_genai.models.builder"
    arguments = ["-m", MODEL, "-i", str(checkpoint), "-o", str(output), "-p", "int4", "-e", "cpu"]
    cache = ["-c", str(output / "cache")]
    return [sys.executable, "-m", module, *arguments, *cache]


def _measure(command: list[str], output: Path) -> Run:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (status, command)
    written = sum(file.stat().st_size for file in output.rglob("*.onnx*"))
    return Run(
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_gb=usage.ru_maxrss / KIB_PER_GB,
        file_gb=written / BYTES_PER_GB,
    )


if __name__ == "__main__":
    print(onnx_export_table())
