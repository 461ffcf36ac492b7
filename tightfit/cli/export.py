"""`tightfit export`: a checkpoint to a quantized artifact for a target."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightfit.cli.artifacts import describe_shared, render_artifact
from tightfit.cli.options import (
    Batch,
    BitsPerWeight,
    BudgetGib,
    CacheTypeName,
    Context,
    Embedding,
    Head,
    JsonFlag,
    Scheme,
    SplitName,
    TargetFile,
    TargetName,
    chosen_name,
    chosen_names,
    examples,
    parse_size,
    parse_workload,
)
from tightfit.cli.output import StderrReporter, emit
from tightfit.cli.plan_tables import plan_document, render_chosen, render_plan

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.pipeline.export import ExportResult
    from tightfit.pipeline.quantize import Method

EXAMPLES = examples(
    ("export -t rtx3060-8gb -o out", "quantize the embedded tiny-r1, to see it work"),
    ("export r1-distill-qwen-7b -t rtx3060-8gb --calib self:n=64", "on its own reasoning traces"),
    ("export r1-distill-qwen-14b -t rtx3060-12gb --bpw 4.2 --calib traces.jsonl", "in fewer bytes"),
    ("export ./my-finetune -t rtx4090-24gb --scheme q5_k_m --calib traces.jsonl", "as you say"),
    (
        "export -t rtx3060-8gb --format gguf,onnx,tensorrt --scheme gptq-int4-g128",
        "three formats that hold the same numbers",
    ),
    ("export r1-distill-qwen-32b -t a100-80gb --format gptq,awq", "checkpoints for vLLM"),
    ("export ./some-awq-checkpoint -t rtx3060-8gb", "a GGUF with the same numbers"),
    ("export r1-distill-llama-8b -t cpu-16gb --dry-run", "only the plan"),
)
FORMATS = ("gguf", "onnx", "tensorrt", "gptq", "awq", "compressed-tensors", "modelopt")
AUTO = "auto"
_DEFAULT_SAMPLES = 128
_DEFAULT_LENGTH_TOKENS = 2048


def export_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name of `tightfit models`, a Hub id or a folder. [default: tiny-r1]"
        ),
    ] = None,
    target: TargetName = None,
    target_file: TargetFile = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write. [default: out/MODEL-TARGET]"),
    ] = None,
    format_: Annotated[
        str,
        typer.Option("--format", help=f"{', '.join(FORMATS)}, or several with commas between."),
    ] = "gguf",
    scheme: Scheme = "auto",
    budget_gib: BudgetGib = None,
    bpw: BitsPerWeight = None,
    head: Head = None,
    embedding: Embedding = None,
    method: Annotated[
        str,
        typer.Option("--method", help="auto, rtn, gptq, awq or awq-gptq; auto is awq-gptq."),
    ] = AUTO,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="Order of GPTQ's columns: static, group-aware, natural, or act-order (for ONNX "
            "and gptq).",
        ),
    ] = "static",
    calibrate_from: Annotated[
        str,
        typer.Option(
            "--calibrate-from",
            help="States that a block is calibrated on: of the model quantized so far, or of the "
            "original, where blocks do not wait for each other (quantized, original).",
        ),
    ] = "quantized",
    context: Context = None,
    batch: Batch = 1,
    kv_cache: CacheTypeName = "f16",
    split: SplitName = "layer",
    calib: Annotated[
        str,
        typer.Option(
            "--calib",
            help="Calibration text: `embedded`, a .jsonl or .txt file, self:n=64 for the model's "
            "own traces; imatrix:FILE for an importance matrix of llama.cpp's, or none.",
        ),
    ] = "embedded",
    calib_samples: Annotated[
        int, typer.Option("--calib-samples", min=1, help="Sequences to use at most.")
    ] = _DEFAULT_SAMPLES,
    calib_length: Annotated[
        int, typer.Option("--calib-length", min=2, help="Tokens of a sequence at most.")
    ] = _DEFAULT_LENGTH_TOKENS,
    calib_precision: Annotated[
        str,
        typer.Option(
            "--calib-precision",
            help="Of the calibration's products, in torch's terms: highest is float32, high "
            "allows TF32, medium bfloat16, where the device has them (highest, high, medium).",
        ),
    ] = "medium",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the choice of sequences.")
    ] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", help="Main memory to use at most, e.g. 64G. [default: all]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes on this machine. [default: as many as help]"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Ray cluster that does the work: its address, or `local`."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Split the GGUF, e.g. at 4G.")
    ] = None,
    mtp: Annotated[
        str,
        typer.Option("--mtp", help="Multi-token-prediction layers of R1: drop, or keep as floats."),
    ] = "drop",
    onnx_dialect: Annotated[
        str,
        typer.Option(
            "--onnx-dialect",
            help="ort (with onnxruntime's fused operators) or standard (ONNX operators only).",
        ),
    ] = "ort",
    onnx_precision: Annotated[
        str,
        typer.Option(
            "--onnx-precision",
            help="What the graph computes in: float16, float32 or auto, which is float32 for a "
            "CPU target.",
        ),
    ] = AUTO,
    onnx_layout: Annotated[
        str,
        typer.Option(
            "--onnx-layout", help="File names of: genai (onnxruntime-genai) or transformers-js."
        ),
    ] = "genai",
    also_for: Annotated[
        str | None,
        typer.Option(
            "--also-for",
            help="Compute capabilities that the TensorRT engine serves beside the target's: 8.0, "
            "8.6, 8.9, 12.0, or several with commas between. [default: none]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Quantize MODEL for a target.

    Writes the artifact and its manifest. Interrupted, it resumes when the same command is run
    again. Exit status 4 when the model does not fit the target.
    """
    formats = chosen_names(format_, "--format", FORMATS)
    split_max_bytes = parse_size(split_max_size, "--split-max-size") if split_max_size else None
    chosen = _method(method, order, calib, calibrate_from, calib_precision)

    from tightfit.calib.calibration import CalibrationOptions
    from tightfit.calib.locate import EMBEDDED_NAME
    from tightfit.export.onnx.naming import OnnxLayout
    from tightfit.export.onnx.options import Dialect, Precision
    from tightfit.pipeline.export import run_export
    from tightfit.pipeline.requests import ExportRequest
    from tightfit.targets.allocation.budget import Budget

    cache_type, split_kind = parse_workload(kv_cache, split)
    where = target or (target_file.stem if target_file else "")
    name = Path(model).name if model else EMBEDDED_NAME
    request = ExportRequest(
        model=model,
        target=target,
        target_file=target_file,
        output=output or Path("out") / f"{name}-{where}",
        revision=revision,
        formats=formats,
        scheme=scheme,
        budget=Budget(file_gib=budget_gib, bits_per_weight=bpw),
        head=head,
        embedding=embedding,
        method=chosen,
        context_tokens=context,
        n_sequences=batch,
        cache_type=cache_type,
        split=split_kind,
        calibration=CalibrationOptions(
            source=calib, samples=calib_samples, max_tokens=calib_length, seed=seed
        ),
        device=device,
        max_memory_bytes=parse_size(max_memory, "--max-memory") if max_memory else None,
        workers=workers,
        ray_address=ray,
        keep_mtp=chosen_name(mtp, "--mtp", ["drop", "keep"]) == "keep",
        split_max_bytes=split_max_bytes,
        onnx_dialect=Dialect(chosen_name(onnx_dialect, "--onnx-dialect", list(Dialect))),
        onnx_precision=(
            None
            if onnx_precision == AUTO
            else Precision(chosen_name(onnx_precision, "--onnx-precision", [AUTO, *Precision]))
        ),
        onnx_layout=OnnxLayout(chosen_name(onnx_layout, "--onnx-layout", list(OnnxLayout))),
        capabilities=tuple(part.strip() for part in also_for.split(",")) if also_for else (),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    result = run_export(request, StderrReporter())
    emit(_document(result), *_render(result), as_json=as_json)


def _method(
    name: str, order: str, calib: str, calibrate_from: str, calib_precision: str
) -> "Method":
    from tightfit.calib.precision import Precision
    from tightfit.pipeline.guidance import is_calibrated
    from tightfit.pipeline.quantize import Algorithm, Method
    from tightfit.quant.algorithms.gptq import GptqSettings
    from tightfit.quant.algorithms.ordering import Order

    gptq = GptqSettings(order=Order(chosen_name(order, "--order", list(Order))))
    start = chosen_name(calibrate_from, "--calibrate-from", ["quantized", "original"])
    precision = chosen_name(calib_precision, "--calib-precision", list(Precision))
    chosen = Method(
        gptq=gptq,
        from_original=start == "original",
        precision=Precision(precision),
    )
    if name != AUTO:
        return replace(
            chosen, algorithm=Algorithm(chosen_name(name, "--method", [AUTO, *Algorithm]))
        )
    return chosen if is_calibrated(calib) else replace(chosen, algorithm=Algorithm.RTN)


def _document(result: "ExportResult") -> dict[str, Any]:
    from tightfit.export.manifest import manifest_text

    manifest = json.loads(manifest_text(result.manifest)) if result.manifest else None
    return {
        "folder": str(result.folder),
        "plans": [plan_document(plan) for plan in result.plans],
        "job": asdict(result.needs),
        "manifest": manifest,
    }


def _render(result: "ExportResult") -> "list[RenderableType]":
    from tightfit.targets.job_needs import needs_text

    if result.manifest is None:
        all_schemes = [part for plan in result.plans for part in render_plan(plan)]
        return [*all_schemes, needs_text(result.needs), "dry run: nothing was written"]
    shown: list[RenderableType] = [render_chosen(result.plans)]
    shown += [f"{plan.format}: {plan.reason}" for plan in result.plans]
    for artifact in result.manifest.artifacts:
        shown += render_artifact(result.folder, artifact)
    return [*shown, *describe_shared(result.manifest), f"next: tightfit verify {result.folder}"]
