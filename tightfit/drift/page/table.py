"""A table as the template draws it, and the columns that reports share."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath
from typing import Final, Generic, TypeVar

from tightfit.drift.report import DriftReport

T = TypeVar("T")

WORD: Final = re.compile(r"[^-]*-?")
"""Names are shortened by whole words: `Q4_K_M` is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure."""

    value: str
    detail: str = ""
    """Its interval or what it is compared with, in small print."""


ABSENT = Cell(value="–")
"""Not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A figure for every column."""

    label: str
    note: str = ""
    """Unit or definition."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under one caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    """A sentence below the caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared(Generic[T]):
    """What several reports have in common, such as a noise floor, and whose it is."""

    name: str
    value: T


def artifact_names(reports: Sequence[DriftReport]) -> tuple[str, ...]:
    """Names that tell the artifacts apart, also where two files are called the same."""
    # A file name may hold bytes that are no text.
    names = [report.artifact.name.encode("utf-8", "replace").decode("utf-8") for report in reports]
    return tuple(
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    )


def short_names(reports: Sequence[DriftReport]) -> tuple[str, ...]:
    """Names for columns and keys: of several, what all begin or end with is left out."""
    names = artifact_names(reports)
    if len(names) == 1:
        return ("Artifact",)
    words = [WORD.findall(name) for name in names]
    shared_begin = sum(1 for _ in takewhile(_all_equal, zip(*words, strict=False)))
    suffixes = {PurePath(name).suffix for name in names}
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    shortened = tuple("".join(parts[shared_begin:]).removesuffix(suffix) for parts in words)
    return shortened if all(shortened) else names


def _all_equal(parts: Sequence[str]) -> bool:
    return len(set(parts)) == 1


def shared(
    reports: Sequence[DriftReport], what: str, of: Callable[[DriftReport], T | None]
) -> tuple[Shared[T], ...]:
    """The distinct values over the reports; each is named after its artifact if there are more."""
    found: list[tuple[str, T]] = []
    for name, report in zip(short_names(reports), reports, strict=True):
        value = of(report)
        if value is not None and all(value != other for _, other in found):
            found.append((name, value))
    if len(found) == 1:
        return (Shared(name=what, value=found[0][1]),)
    return tuple(Shared(name=f"{what} of {name}", value=value) for name, value in found)
