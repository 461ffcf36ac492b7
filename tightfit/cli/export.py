"""`tightfit export`: a checkpoint to a quantized artifact for a target."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightfit.cli.options import Context, JsonFlag, Scheme, TargetName, examples, parse_size
from tightfit.cli.output import StderrReporter, emit, table
from tightfit.cli.plan import plan_document, render_plan
from tightfit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.export.manifest import Manifest
    from tightfit.pipeline.export import ExportResult
    from tightfit.pipeline.quantize import Method

EXAMPLES = examples(
    ("export -t rtx3060-8gb -o out", "quantize the embedded tiny-r1, to see it work"),
    ("export r1-distill-qwen-7b -t rtx3060-8gb --calib self:n=64", "on its own reasoning traces"),
    ("export ./my-finetune -t rtx4090-24gb --scheme q5_k_m --calib traces.jsonl", "as you say"),
    ("export r1-distill-llama-8b -t cpu-16gb --dry-run", "only the plan"),
)
FORMATS = ("gguf",)
AUTO_METHOD = "auto"
_DEFAULT_SAMPLES = 128
_DEFAULT_LENGTH_TOKENS = 2048


def export_command(
    target: TargetName,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name of `tightfit models`, a Hub id or a folder. [default: tiny-r1]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write. [default: out/MODEL-TARGET]"),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Artifact format: gguf.")] = "gguf",
    scheme: Scheme = "auto",
    method: Annotated[
        str,
        typer.Option("--method", help="auto, rtn, gptq, awq or awq-gptq; auto is awq-gptq."),
    ] = AUTO_METHOD,
    context: Context = None,
    calib: Annotated[
        str,
        typer.Option(
            "--calib",
            help="Calibration text: `embedded`, a .jsonl or .txt file, or self:n=64 for the "
            "model's own traces.",
        ),
    ] = "embedded",
    calib_samples: Annotated[
        int, typer.Option("--calib-samples", min=1, help="Sequences to use at most.")
    ] = _DEFAULT_SAMPLES,
    calib_length: Annotated[
        int, typer.Option("--calib-length", min=2, help="Tokens of a sequence at most.")
    ] = _DEFAULT_LENGTH_TOKENS,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the choice of sequences.")
    ] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Split the GGUF, e.g. at 4G.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Quantize MODEL for a target.

    Writes the artifact and its manifest. Interrupted, it resumes when the same command is run
    again. Exit status 4 when the model does not fit the target.
    """
    if format_ not in FORMATS:
        raise UsageError(
            f"--format {format_} is not a format that tightfit writes",
            allowed="formats: " + ", ".join(FORMATS),
        )
    split_max_bytes = parse_size(split_max_size, "--split-max-size") if split_max_size else None
    chosen = _method(method)

    from tightfit.calib.calibration import CalibrationOptions
    from tightfit.calib.locate import EMBEDDED_NAME
    from tightfit.pipeline.export import run_export
    from tightfit.pipeline.requests import ExportRequest

    name = Path(model).name if model else EMBEDDED_NAME
    request = ExportRequest(
        model=model,
        target=target,
        output=output or Path("out") / f"{name}-{target}",
        revision=revision,
        scheme=scheme,
        method=chosen,
        context_tokens=context,
        calibration=CalibrationOptions(
            source=calib, samples=calib_samples, max_tokens=calib_length, seed=seed
        ),
        device=device,
        split_max_bytes=split_max_bytes,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    result = run_export(request, StderrReporter())
    emit(_document(result), *_render(result), as_json=as_json)


def _method(name: str) -> "Method":
    from tightfit.pipeline.quantize import Algorithm, Method

    if name == AUTO_METHOD:
        return Method()
    if name not in list(Algorithm):
        raise UsageError(
            f"--method {name} does not exist",
            allowed=f"methods: {', '.join([AUTO_METHOD, *Algorithm])}",
        )
    return Method(algorithm=Algorithm(name))


def _document(result: "ExportResult") -> dict[str, Any]:
    from tightfit.export.manifest import manifest_text

    manifest = json.loads(manifest_text(result.manifest)) if result.manifest else None
    return {
        "folder": str(result.folder),
        "plan": plan_document(result.plan),
        "manifest": manifest,
    }


def _render(result: "ExportResult") -> "list[RenderableType]":
    shown = list(render_plan(result.plan))
    if result.manifest is None:
        return [*shown, "dry run: nothing was written"]
    return [*shown, *_render_artifact(result.folder, result.manifest)]


def _render_artifact(folder: Path, manifest: "Manifest") -> "list[RenderableType]":
    from tightfit.targets.plan import size_text

    files = [
        [str(folder / record.name), size_text(record.size_bytes), record.sha256[:16]]
        for record in manifest.files
    ]
    grids = Counter(tensor.grid for tensor in manifest.tensors)
    facts = [
        ["bits per weight", f"{manifest.bits_per_weight:.3f}"],
        ["tensors", ", ".join(f"{count} {grid}" for grid, count in grids.most_common())],
        ["method", manifest.scheme.method],
    ]
    if manifest.calibration:
        used = manifest.calibration
        facts.append(
            ["calibration", f"{used.source}, {used.samples} sequences, {used.tokens} tokens"]
        )
    # An export that finds one tensor different ends with an error instead.
    n_tensors = len(manifest.tensors)
    facts.append(["read back", f"{n_tensors} of {n_tensors} tensors equal, bit for bit"])
    return [
        table("", ("file", "size", "sha256"), files, left=1),
        table("", ("artifact", ""), facts, left=2),
        f"next: tightfit verify {folder}",
    ]
