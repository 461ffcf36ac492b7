"""Where problems come from: the known data sets, any other of the Hub, and files.

embedded                    the held-out problems that ship with tiny-r1, offline
math500, aime24, gsm8k      the registry below
owner/name[:config/split]   another data set of the Hub with the fields of `schemas`
FILE                        .jsonl, .json, .csv or .parquet with the fields of `schemas`
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tightfit.drift.data import schemas
from tightfit.drift.data.hub import hub_rows
from tightfit.drift.data.problem import Problem
from tightfit.drift.data.rows import READERS, read_rows
from tightfit.drift.data.schemas import Schema, problems_of
from tightfit.errors import UsageError

EMBEDDED: Final = "embedded"
EMBEDDED_FILE: Final = Path("embedded", "tiny-r1", "heldout.jsonl")
HUB_ID: Final = re.compile(
    r"(?P<hub_id>[\w.-]+/[\w.-]+)(:(?P<config>[^/:]+)/(?P<split>[^/:]+))?", re.ASCII
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A data set of the Hub."""

    hub_id: str
    config: str | None = None
    """None: the only one."""
    split: str | None = None
    """None: the only one."""
    schema: Schema | None = None
    """None: found by the fields."""


SOURCES: Final[Mapping[str, HubSource]] = {
    # MATH-500: Lightman et al., 2023 (arXiv 2305.20050), 500 test problems of MATH.
    "math500": HubSource(hub_id="HuggingFaceH4/MATH-500", split="test", schema=schemas.MATH),
    # The 30 problems of AIME 2024 I and II, answers 0 to 999; leading zeros (073) grade as 73.
    "aime24": HubSource(hub_id="HuggingFaceH4/aime_2024", split="train", schema=schemas.AIME),
    # GSM8K: Cobbe et al., 2021 (arXiv 2110.14168), 1,319 test problems; its other configuration,
    # `socratic`, asks the same questions.
    "gsm8k": HubSource(hub_id="openai/gsm8k", config="main", split="test", schema=schemas.GSM8K),
}


def read_source(name: str) -> list[Problem]:
    """All problems of a source, in its order.

    Raises `UsageError` for a name that is none of the above, `DriftError` for data that cannot be
    had or used, `MissingPackageError` where reading it needs an optional package.
    """
    if name == EMBEDDED:
        import tightfit.calib

        file = Path(tightfit.calib.__path__[0]) / EMBEDDED_FILE
        return problems_of(read_rows(file), origin=EMBEDDED, schema=schemas.MATH)
    source = SOURCES.get(name)
    path = Path(name)
    if source is None and path.is_file():
        return problems_of(read_rows(path), origin=name, schema=None)
    source = source or _of_the_hub(name)
    if source is None:
        raise UsageError(
            f"{name!r} is neither a known data set nor a file", allowed=allowed_sources()
        )
    return problems_of(
        hub_rows(source.hub_id, source.config, source.split), origin=name, schema=source.schema
    )


def allowed_sources() -> str:
    """What can be named, for error messages and `--help`."""
    return (
        f"sources: {', '.join((EMBEDDED, *SOURCES))}, a data set of the Hub "
        f"(owner/name or owner/name:config/split), or a file ({', '.join(READERS)})"
    )


def _of_the_hub(name: str) -> HubSource | None:
    found = HUB_ID.fullmatch(name)
    # `data/none.jsonl` has the form of a Hub id, but is a file that is not there.
    if found is None or Path(found["hub_id"]).suffix in READERS:
        return None
    known = {source.hub_id: source for source in SOURCES.values()}
    if found["config"] is None and found["hub_id"] in known:
        return known[found["hub_id"]]
    return HubSource(hub_id=found["hub_id"], config=found["config"], split=found["split"])
