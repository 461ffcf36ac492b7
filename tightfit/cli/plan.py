"""`tightfit plan`: what fits, before anything is downloaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightfit.cli.options import (
    Context,
    Embedding,
    Head,
    JsonFlag,
    Scheme,
    TargetName,
    examples,
)
from tightfit.cli.output import emit, table
from tightfit.errors import CheckpointError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.calib.dimensions import ModelDimensions
    from tightfit.targets.candidates import Candidate
    from tightfit.targets.plan import Plan
    from tightfit.targets.profile import Target

EXAMPLES = examples(
    ("plan r1-distill-qwen-7b -t rtx3060-8gb", "the schemes of the 7B distill on an 8 GB card"),
    ("plan r1-distill-qwen-14b -t rtx3060-12gb --context 16384", "with room for longer traces"),
    ("plan r1-distill-qwen-7b -t rtx4090-24gb --format tensorrt", "as a TensorRT engine"),
    ("plan ./my-finetune -t cpu-16gb --scheme q5_k_m", "one scheme of a local checkpoint"),
)
_COLUMNS = (
    "file",
    "bits",
    "weights",
    "KV cache",
    "compute",
    "runtime",
    "total",
    "max context",
    "fits",
)


def plan_command(
    model: Annotated[
        str, typer.Argument(help="A name of `tightfit models`, its Hub id, or a local folder.")
    ],
    target: TargetName,
    format_: Annotated[str, typer.Option("--format", help="gguf, onnx or tensorrt.")] = "gguf",
    context: Context = None,
    scheme: Scheme = "auto",
    head: Head = None,
    embedding: Embedding = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what fits the target, and why.

    Works offline and reads no weights.
    Exit status 4 when nothing fits; the message says what would.
    """
    from tightfit.targets.plan import make_plan
    from tightfit.targets.profile import load_target

    profile = load_target(target)
    made = make_plan(
        _dimensions(model, profile),
        profile,
        model=model,
        scheme=scheme,
        context_tokens=context,
        format=format_,
        head=head,
        embedding=embedding,
    )
    emit(plan_document(made), *render_plan(made), as_json=as_json)


def plan_document(plan: "Plan") -> Mapping[str, Any]:
    """The plan as JSON shows it."""
    return {
        "model": plan.model,
        "target": plan.target.name,
        "format": plan.format,
        "runtime": plan.runtime,
        "precision": plan.precision,
        "context_tokens": plan.context_tokens,
        "available_bytes": plan.target.available_bytes,
        "candidates": [
            asdict(candidate) | {"total_bytes": candidate.memory.total_bytes}
            for candidate in plan.candidates
        ],
        "chosen": asdict(plan.chosen),
        "storage": dict(plan.storage),
        "reason": plan.reason,
    }


def render_plan(plan: "Plan") -> "tuple[RenderableType, ...]":
    """The plan for people: every scheme, the chosen one marked, and the reason."""
    rows = [
        [f"{'>' if item.scheme == plan.chosen.scheme else ' '} {item.scheme}", *_figures(item)]
        for item in plan.candidates
    ]
    return table(_title(plan, f" in {plan.runtime}"), ("scheme", *_COLUMNS), rows), plan.reason


def render_chosen(plans: "Sequence[Plan]") -> "RenderableType":
    """The chosen scheme of each of several formats."""
    rows = [[plan.format, plan.chosen.scheme, *_figures(plan.chosen)] for plan in plans]
    return table(_title(plans[0]), ("format", "scheme", *_COLUMNS), rows, left=2)


def _title(plan: "Plan", runtime: str = "") -> str:
    from tightfit.targets.plan import size_text

    return (
        f"{plan.model} on {plan.target.name}{runtime}, {plan.context_tokens} tokens of context, "
        f"{size_text(plan.target.available_bytes)} to spend"
    )


def _figures(item: "Candidate") -> list[str]:
    """A row of `_COLUMNS`."""
    from tightfit.targets.plan import size_text

    memory = item.memory
    parts = (memory.weights_bytes, memory.kv_cache_bytes, memory.compute_bytes)
    return [
        size_text(item.file_bytes),
        f"{item.bits_per_weight:.2f}",
        *map(size_text, parts),
        size_text(memory.runtime_bytes),
        size_text(memory.total_bytes),
        str(item.max_context_tokens or "-"),
        "yes" if item.fits else "no",
    ]


def _dimensions(model: str, target: "Target") -> "ModelDimensions":
    """The model's sizes, from the registry or from a local config.json; never a download."""
    from tightfit.calib.config import read_config
    from tightfit.calib.dimensions import dimensions_of
    from tightfit.calib.locate import EMBEDDED_NAME, locate_model
    from tightfit.calib.models import find_model
    from tightfit.targets.plan import refuse_oversized

    known = find_model(model)
    if known and not Path(model).exists():
        refuse_oversized(known, target)
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
