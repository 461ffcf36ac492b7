"""Records survive JSON, and what does not match its annotation is refused by name."""

import dataclasses
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from tightfit.records import build


class Colour(StrEnum):
    RED = "red"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    size: float
    colour: Colour


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    parts: tuple[Inner, ...]
    pair: tuple[int, str]
    facts: Mapping[str, Any]
    missing: Inner | None = None
    ends: tuple[float, float] | None = None


RECORD = Outer(
    name="a",
    inner=Inner(size=1.5, colour=Colour.RED),
    parts=(Inner(size=2.0, colour=Colour.RED),),
    pair=(1, "x"),
    facts={"k": [1, None]},
    ends=(0.0, 1.0),
)


def fields() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(RECORD)))
    return made


def test_a_record_survives_json() -> None:
    assert build(Outer, fields()) == RECORD


def test_a_whole_number_is_a_float_where_one_is_expected() -> None:
    found = build(Outer, fields() | {"inner": {"size": 3, "colour": "red"}}).inner.size
    assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": None},
        {"inner": None},
        {"inner": [1]},
        {"inner": {"size": "3", "colour": "red"}},
        {"inner": {"size": True, "colour": "red"}},
        {"inner": {"size": 1.0, "colour": "blue"}},
        {"inner": {"size": 1.0}},
        {"parts": {}},
        {"pair": [1]},
        {"pair": [1, "x", 2]},
        {"ends": [0.0]},
        {"more": 1},
    ],
)
def test_what_does_not_match_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        build(Outer, fields() | change)
