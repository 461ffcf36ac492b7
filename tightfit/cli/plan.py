"""`tightfit plan`: what fits, before anything is downloaded."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    examples,
    parse_workload,
)
from tightfit.cli.output import emit, emit_text
from tightfit.cli.plan_tables import (
    matrix_document,
    matrix_markdown,
    plan_document,
    render_matrix,
    render_plan,
)
from tightfit.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from tightfit.calib.dimensions import ModelDimensions

EXAMPLES = examples(
    ("plan r1-distill-qwen-7b -t rtx3060-8gb", "the schemes of the 7B distill on an 8 GB card"),
    ("plan r1-distill-qwen-14b -t rtx3060-12gb --context 16384", "with room for longer traces"),
    ("plan r1 -t a100x8-80gb --batch 4", "DeepSeek-R1 itself on eight A100s, four users at once"),
    ("plan r1-distill-qwen-7b -t rtx4090-24gb --format tensorrt", "as a TensorRT engine"),
    ("plan ./my-finetune -t cpu-16gb --scheme q5_k_m", "one scheme of a local checkpoint"),
    ("plan --all-targets", "every model of the family on every target"),
)


def plan_command(
    model: Annotated[
        str | None, typer.Argument(help="A name of `tightfit models`, its Hub id, or a folder.")
    ] = None,
    target: TargetName = None,
    target_file: TargetFile = None,
    all_targets: Annotated[
        bool, typer.Option("--all-targets", help="The family on all targets, as a matrix.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the matrix as a table of Markdown.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="gguf, onnx or tensorrt.")] = "gguf",
    context: Context = None,
    batch: Batch = 1,
    kv_cache: CacheTypeName = "f16",
    split: SplitName = "layer",
    scheme: Scheme = "auto",
    budget_gib: BudgetGib = None,
    bpw: BitsPerWeight = None,
    head: Head = None,
    embedding: Embedding = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what fits the target, and why.

    Works offline and reads no weights. KL is a rough prediction, tokens/s a bound that no runtime
    reaches. Exit status 4 when nothing fits; the message says what would.
    """
    if all_targets:
        given = {
            model or "": model,
            "--target": target,
            "--target-file": target_file,
            "--format": format_ != "gguf",
            "--batch": batch != 1,
            "--kv-cache": kv_cache != "f16",
            "--split": split != "layer",
            "--scheme": scheme != "auto",
            "--budget-gib": budget_gib,
            "--bpw": bpw,
            "--head": head,
            "--embedding": embedding,
        }
        unused = [name for name, value in given.items() if value is not None and value is not False]
        _print_matrix(unused, context, markdown=markdown, as_json=as_json)
        return
    if model is None or markdown:
        raise UsageError(
            "--markdown is for --all-targets" if markdown else "no MODEL was given",
            allowed="a name of `tightfit models`, its Hub id, or a folder",
            hint="`tightfit plan --all-targets` shows all models",
        )
    if "," in format_:
        raise UsageError(
            f"--format {format_}: a plan is for one format",
            allowed="gguf, onnx or tensorrt",
            hint="plan each by itself; `tightfit export --dry-run` shows several",
        )
    from tightfit.targets.allocation.budget import Budget
    from tightfit.targets.job_needs import export_needs, needs_text
    from tightfit.targets.plan import make_plan
    from tightfit.targets.profile import choose_target

    profile = choose_target(target, target_file)
    cache_type, split_kind = parse_workload(kv_cache, split)
    made = make_plan(
        _dimensions(model),
        profile,
        model=model,
        scheme=scheme,
        context_tokens=context,
        n_sequences=batch,
        cache_type=cache_type,
        split=split_kind,
        budget=Budget(file_gib=budget_gib, bits_per_weight=bpw),
        format=format_,
        head=head,
        embedding=embedding,
    )
    needs = export_needs(made)
    document = {**plan_document(made), "job": {name: asdict(of) for name, of in needs.items()}}
    lines = [f"exporting it {name} {needs_text(of)}" for name, of in needs.items()]
    emit(document, *render_plan(made), *lines, as_json=as_json)


def _print_matrix(
    unused: Sequence[str], context: int | None, *, markdown: bool, as_json: bool
) -> None:
    from tightfit.targets.matrix import make_matrix

    if unused:
        raise UsageError(
            "--all-targets shows the file types of all models on all targets, and "
            f"{', '.join(unused)} was given",
            allowed="--context, --markdown and --json beside --all-targets",
            hint=f"leave {', '.join(unused)} out, or leave --all-targets out",
        )
    matrix = make_matrix(context)
    if markdown and not as_json:
        emit_text(matrix_markdown(matrix))
        return
    emit(matrix_document(matrix), *render_matrix(matrix), as_json=as_json)


def _dimensions(model: str) -> "ModelDimensions":
    """The model's sizes, from the registry or from a local config.json; never a download."""
    from tightfit.calib.config import read_config
    from tightfit.calib.dimensions import dimensions_of
    from tightfit.calib.locate import EMBEDDED_NAME, locate_model
    from tightfit.calib.models import find_model

    known = find_model(model)
    if known and not Path(model).exists():
        return known.dimensions
    if model != EMBEDDED_NAME and not Path(model).expanduser().exists() and "/" in model:
        raise CheckpointError(
            f"{model!r} is neither a folder nor a checkpoint of the family, and `plan` downloads "
            "nothing",
            allowed="a name or Hub id of `tightfit models`, or a local folder",
            hint=f"get its config alone: hf download {model} config.json --local-dir some-folder, "
            "then `tightfit plan some-folder`",
        )
    return dimensions_of(read_config(locate_model(model).path))
