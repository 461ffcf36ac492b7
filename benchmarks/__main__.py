"""All benchmarks, written into `docs/`: `make bench`.

    python -m benchmarks [quality|allocation|speed|plan|race|conversion|growth|roofline|onnx|gate|
                          scale]

`scale` runs only when it is named: it takes hours and 20 GB of disk. `growth` measures what
`docs/growth.json` lacks; `python -m benchmarks.growth --again` repeats it.
"""

import argparse
import os
import platform

from benchmarks.allocation import PLOT_NAME, allocation_sections
from benchmarks.conversion.run import render_conversion, write_conversion
from benchmarks.documents import DOCS, replace_part
from benchmarks.gate_rates import write_gate_rates
from benchmarks.growth.run import render_growth, write_growth
from benchmarks.onnx_export import onnx_export_table
from benchmarks.plan_time import ROUNDS as PLAN_ROUNDS
from benchmarks.plan_time import TARGET, plan_table
from benchmarks.quality import FILE_TYPES, quality_sections
from benchmarks.race.run import render_race, write_race
from benchmarks.roofline import write_roofline
from benchmarks.scale import write_scale
from benchmarks.speed import COLUMNS, ROWS, export_table, performance_table
from tightfit.calib.locate import EMBEDDED_NAME

DEFAULT = [
    *("speed", "plan", "race", "conversion", "growth", "roofline"),
    *("onnx", "gate", "allocation", "quality"),
]
SPEED_HEAD = f"""# Performance, measured

Written by `make bench` (`python -m benchmarks speed`) on a machine of {os.cpu_count()} cores \
({platform.machine()}).

## Rounding, against ggml's own kernels

One thread, medians of five rounds, ours (torch) and ggml (C) in turn on the same {ROWS} x {COLUMNS}
matrix under the same importance matrix. The last column is GPTQ with everything it does:
factorization, fits, column loop.
"""
EXPORT_HEAD = """## The whole job

`tightfit export -t rtx3060-8gb --scheme q4_k_m` of the embedded model (3.4M weights), one process
a method, start-up and imports included.
"""
PLAN_PART = f"""## The plan

`tightfit plan MODEL --target {TARGET}` (`python -m benchmarks plan`), one process a call, start-up
and imports included, median and slowest of {PLAN_ROUNDS} in wall time. It reads no weights and
needs no network.

<!-- plan -->
<!-- /plan -->
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
    """Write the part of `docs/quality.md` on equal file types."""
    replace_part(DOCS / "quality.md", "file types", quality_sections(FILE_TYPES))


def write_allocation() -> None:
    """Write the part of `docs/quality.md` on equal sizes, and its plot."""
    sections = allocation_sections((EMBEDDED_NAME, "smollm2"), DOCS / PLOT_NAME)
    replace_part(DOCS / "quality.md", "equal size", sections)


def write_performance() -> None:
    """Write `docs/performance.md`."""
    text = f"{SPEED_HEAD}\n{performance_table()}\n{EXPORT_HEAD}\n{export_table()}\n{PLAN_PART}"
    (DOCS / "performance.md").write_text(text, encoding="utf-8")
    write_plan_time()
    render_race()
    render_conversion()
    render_growth()
    write_roofline()


def write_plan_time() -> None:
    """Write the part of `docs/performance.md` on the plan."""
    replace_part(DOCS / "performance.md", "plan", plan_table())


def main() -> None:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "which",
        nargs="*",
        choices=[*DEFAULT, "scale"],
        default=[],
    )
    which = parser.parse_args().which or DEFAULT
    if "speed" in which:
        write_performance()
    if "plan" in which:
        write_plan_time()
    if "race" in which:
        write_race()
    if "conversion" in which:
        write_conversion()
    if "growth" in which:
        write_growth()
    if "roofline" in which:
        write_roofline()
    if "onnx" in which:
        write_onnx()
    if "gate" in which:
        write_gate_rates()
    if "allocation" in which:
        write_allocation()
    if "quality" in which:
        write_quality()
    if "scale" in which:
        write_scale()


if __name__ == "__main__":
    main()
