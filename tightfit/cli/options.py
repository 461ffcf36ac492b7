"""What several commands share: options, their parsing, and the EXAMPLES of a help text."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.errors import UsageError

if TYPE_CHECKING:
    from tightfit.targets.workload import CacheType, Split

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, also for errors.")
]
TargetName = Annotated[
    str | None, typer.Option("--target", "-t", help="Hardware target: see `tightfit targets`.")
]
TargetFile = Annotated[
    Path | None,
    typer.Option("--target-file", help="A profile of your own in its place: docs/targets.md."),
]
Context = Annotated[
    int | None,
    typer.Option("--context", help="Tokens of context to keep room for. [default: up to 8192]"),
]
Scheme = Annotated[
    str,
    typer.Option(
        "--scheme",
        help="auto (the mix of grids that loses least in the room there is), a GGUF file type such "
        "as q4_k_m, or one grid such as gptq-int4-g128, int8-g32 or fp8-channel-static.",
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", min=1, help="Sequences at once, each with its own context.")
]
CacheTypeName = Annotated[
    str, typer.Option("--kv-cache", help="Number type of the KV cache: f16, q8_0 or fp8.")
]
SplitName = Annotated[
    str,
    typer.Option(
        "--split",
        help="How several devices share a model: layer (one after the other) or tensor (a slice "
        "of every matrix each).",
    ),
]
BudgetGib = Annotated[
    float | None,
    typer.Option(
        "--budget-gib",
        help="Size of the tensors in the file that --scheme auto may not exceed. [default: what "
        "the target has room for]",
    ),
]
BitsPerWeight = Annotated[
    float | None, typer.Option("--bpw", help="The same as bits per weight over all tensors.")
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Grid or float type of the output head: f16, int8-g128, q6_k ... "
        "[default: the scheme's]",
    ),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        help="The same of the token embedding. [default: the scheme's, which with a grid is f16]",
    ),
]

_SIZE = re.compile(r"(\d+)(?:([KMG])B?|B)", re.IGNORECASE)
_UNIT_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
"""Decimal, as `llama-gguf-split --split-max-size` counts."""


def examples(*lines: tuple[str, str]) -> str:
    """The EXAMPLES of a command: pairs of what to type and what it does."""
    text = ["\b", "EXAMPLES"]
    for command, meaning in lines:
        text += [f"  $ tightfit {command}", f"      {meaning}"]
    return "\n".join(text)


def chosen_name(name: str, option: str, allowed: Sequence[str]) -> str:
    """`name`, when it is one of the names that the option takes; raises `UsageError`."""
    if name not in allowed:
        raise UsageError(
            f"{option} {name} does not exist",
            allowed=f"allowed: {', '.join(allowed)}",
            hint=f"e.g. {option} {allowed[0]}",
        )
    return name


def chosen_names(text: str, option: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names with commas between, each once, in the order given; raises `UsageError`."""
    names = (part.strip() for part in text.split(","))
    return tuple(dict.fromkeys(chosen_name(name, option, allowed) for name in names))


def parse_workload(cache_type: str, split: str) -> "tuple[CacheType, Split]":
    """The KV cache's number type and the split of these names; raises `UsageError`."""
    from tightfit.targets.workload import CacheType, Split

    return (
        CacheType(chosen_name(cache_type, "--kv-cache", list(CacheType))),
        Split(chosen_name(split, "--split", list(Split))),
    )


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `4G` or `500M`; raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"{option} {text} is not a size",
            allowed="a whole number above 0 with K, M or G (powers of 1000), or with B for bytes",
            hint=f"e.g. {option} 4G",
        )
    return int(match[1]) * _UNIT_BYTES[(match[2] or "").upper()]
