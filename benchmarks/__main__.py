"""All benchmarks, written into `docs/`: `make bench`.

    python -m benchmarks [speed|start-up|race|conversion|growth|roofline|onnx|gate|allocation|
                          quality|scale]

`scale` runs only when it is named: it takes hours and 20 GB of disk. `growth` measures what
`docs/growth.json` lacks; `python -m benchmarks.growth --again` repeats it.
"""

import argparse

from benchmarks.allocation import PLOT_NAME, allocation_sections
from benchmarks.conversion.run import write_conversion
from benchmarks.documents import DOCS, replace_part
from benchmarks.gate_rates import write_gate_rates
from benchmarks.growth.run import write_growth
from benchmarks.onnx_export import onnx_export_table
from benchmarks.quality import FILE_TYPES, quality_sections
from benchmarks.race.run import write_race
from benchmarks.roofline import write_roofline
from benchmarks.scale import write_scale
from benchmarks.speed import export_table, performance_table
from benchmarks.start_up import start_up_table
from benchmarks.verdict import write_verdict
from tightfit.calib.locate import EMBEDDED_NAME

DEFAULT = [
    *("speed", "start-up", "race", "conversion", "growth", "roofline"),
    *("onnx", "gate", "allocation", "quality"),
]
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


def write_speed() -> None:
    """Write the parts of `docs/performance.md` on rounding and on the whole job."""
    replace_part(DOCS / "performance.md", "rounding", performance_table())
    replace_part(DOCS / "performance.md", "export", export_table())


def write_start_up() -> None:
    """Write the part of `docs/performance.md` on start-up."""
    replace_part(DOCS / "performance.md", "start-up", start_up_table())


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
        write_speed()
    if "start-up" in which:
        write_start_up()
    if "race" in which:
        write_race()
    if "conversion" in which:
        write_conversion()
    if "growth" in which:
        write_growth()
    if "roofline" in which:
        write_roofline()
    write_verdict()
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
