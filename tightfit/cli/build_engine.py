"""`tightfit build-engine`: a TensorRT engine for the GPU of this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tightfit.cli.artifacts import engine_text
from tightfit.cli.options import JsonFlag, chosen_name, examples
from tightfit.cli.output import StderrReporter, emit

EXAMPLES = examples(
    ("build-engine out", "with classical TensorRT, on the machine that has the card"),
    ("build-engine out --package tensorrt_rtx", "with TensorRT for RTX, for this card only"),
)


def build_engine_command(
    artifact: Annotated[Path, typer.Argument(help="Folder of an export with --format tensorrt.")],
    package: Annotated[
        str, typer.Option("--package", help="tensorrt (classical) or tensorrt_rtx (for RTX).")
    ] = "tensorrt",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an engine.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine for this machine's GPU.

    Classical TensorRT engines run only on the GPU that they are built on. Builds from the folder's
    ONNX file, runs the golden inputs, and adds the engine to tightfit.json.
    """
    from tightfit.pipeline.build_engine import run_build_engine
    from tightfit.runtimes.tensorrt.package import Package

    chosen = Package(chosen_name(package, "--package", list(Package)))
    record = run_build_engine(artifact, StderrReporter(), package=chosen, overwrite=overwrite)
    emit(asdict(record), f"{record.file}: {engine_text(record)}", as_json=as_json)
