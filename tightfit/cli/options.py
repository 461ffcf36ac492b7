"""What several commands share: options, their parsing, and the EXAMPLES of a help text."""

import re
from typing import Annotated

import typer

from tightfit.errors import UsageError

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, also for errors.")
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Hardware target: see `tightfit targets`.")
]
Context = Annotated[
    int | None,
    typer.Option("--context", help="Tokens of context to keep room for. [default: up to 8192]"),
]
Scheme = Annotated[
    str,
    typer.Option("--scheme", help="`auto`, or a GGUF file type such as q4_k_m."),
]

_SIZE = re.compile(r"(\d+)([KMG])B?", re.IGNORECASE)
_UNIT_BYTES = {"K": 10**3, "M": 10**6, "G": 10**9}
"""Decimal, as `llama-gguf-split --split-max-size` counts."""


def examples(*lines: tuple[str, str]) -> str:
    """The EXAMPLES of a command: pairs of what to type and what it does."""
    text = ["\b", "EXAMPLES"]
    for command, meaning in lines:
        text += [f"  $ tightfit {command}", f"      {meaning}"]
    return "\n".join(text)


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `4G` or `500M`; raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"{option} {text} is not a size",
            allowed="a whole number above 0 with K, M or G (powers of 1000)",
            hint=f"e.g. {option} 4G",
        )
    return int(match[1]) * _UNIT_BYTES[match[2].upper()]
