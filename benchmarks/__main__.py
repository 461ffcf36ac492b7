"""All benchmarks, written into `docs/`: `make bench`.

python -m benchmarks [quality|speed|onnx|gate]
"""

import argparse
import os
import platform
from pathlib import Path

from benchmarks.gate_rates import write_gate_rates
from benchmarks.onnx_export import onnx_export_table
from benchmarks.quality import FILE_TYPES, quality_sections
from benchmarks.speed import COLUMNS, ROWS, export_table, performance_table

DOCS = Path(__file__).parents[1] / "docs"
QUALITY_HEAD = """# Quality: what quantization costs, measured

Written by `make bench` (`python -m benchmarks quality`). Each file type is quantized by llama.cpp's
own kernels under an importance matrix, and by us on the same grids, so all files of a type have the
same size to the byte. Same calibration sequences, same measuring tool: logits of the file in
llama.cpp against those of transformers on the unquantized checkpoint, on sequences that calibration
never saw. KL is per token, in nats; its standard error counts sequences, not tokens.

llama.cpp's runtime rounds activations to 8 bits when it multiplies them with quantized weights;
that is part of every KL below, ours and theirs.
"""
SPEED_HEAD = f"""# Performance, measured

Written by `make bench` (`python -m benchmarks speed`) on a machine of {os.cpu_count()} cores \
({platform.machine()}).

## Rounding, against ggml's own kernels

One thread, medians of five rounds, ours (torch) and ggml (C) in turn on the same {ROWS} x {COLUMNS}
matrix under the same importance matrix. The last column is GPTQ with everything it does:
factorization, fits, column loop.
"""
EXPORT_HEAD = """## The whole job

`tightfit export -t rtx3060-8gb` of the embedded model (3.4M weights), one process a method,
start-up and imports included.
"""

ONNX_HEAD = """# Performance of the ONNX export, measured

Written by `make bench` (`python -m benchmarks onnx`). A checkpoint with the shapes of
DeepSeek-R1-Distill-Qwen-1.5B and random weights becomes an INT4 file of groups of 32, head
included, by rounding to nearest, for onnxruntime on the CPU. Ours and the builder of
onnxruntime-genai ran one after the other, a process each, imports included. Ours also passes
calibration sequences through the model, rounds under the importance matrix, reports every layer's
error and reads the file back bit for bit; most of its time is the layers' error. Peak memory is the
process's largest resident set, mapped files included. The embedding stays float16 in ours and
float32 in the builder's.
"""


def write_onnx() -> None:
    """Write `docs/performance-onnx.md`."""
    text = f"{ONNX_HEAD}\n{onnx_export_table()}"
    (DOCS / "performance-onnx.md").write_text(text, encoding="utf-8")


def write_quality() -> None:
    """Write `docs/quality.md`."""
    text = QUALITY_HEAD + "\n" + quality_sections(FILE_TYPES)
    (DOCS / "quality.md").write_text(text, encoding="utf-8")


def write_performance() -> None:
    """Write `docs/performance.md`."""
    text = f"{SPEED_HEAD}\n{performance_table()}\n{EXPORT_HEAD}\n{export_table()}"
    (DOCS / "performance.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "which", nargs="*", choices=["quality", "speed", "onnx", "gate"], default=[]
    )
    which = parser.parse_args().which or ["speed", "onnx", "gate", "quality"]
    if "speed" in which:
        write_performance()
    if "onnx" in which:
        write_onnx()
    if "gate" in which:
        write_gate_rates()
    if "quality" in which:
        write_quality()


if __name__ == "__main__":
    main()
