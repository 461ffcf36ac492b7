"""Records to JSON and back: frozen dataclasses of plain values, checked against their annotations.

`dataclasses.asdict` writes them; `parse_json` and `build` read them and refuse what does not match.
What is read may come from a stranger, so `parse_json` takes less than Python's own reader: one
value a key, numbers that are numbers, and no more of anything than a real file has.
"""

import dataclasses
import enum
import json
import math
import reprlib
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")

MAX_JSON_BYTES = 100_000_000
"""A tokenizer.json has up to 40 MB; the header of a safetensors file may have 100."""
_MAX_VALUES = 10_000_000
"""A manifest of R1 in four formats has 3 million, and each value takes up to 100 bytes."""
_MAX_DEPTH = 64
"""Real files have at most ten levels; a thousand exhaust Python's stack."""
_MAX_INTEGER_BITS = 128
"""`model_max_length` is 10^30 where a tokenizer has no limit."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


def load_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most `max_bytes`; raises `ValueError` as `parse_json` does."""
    size_bytes = path.stat().st_size
    if size_bytes > max_bytes:
        raise ValueError(f"{size_bytes} bytes, and such a file has at most {max_bytes}")
    return parse_json(path.read_bytes())


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises `ValueError` for what is not JSON (NaN and infinity are not), for a key that an object
    has twice, of which every reader takes another, and for a document that only fills memory.
    """
    if sum(map(data.count, (b"{", b"[", b","))) > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES} values")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    _check_values(value)
    # An escaped half of a surrogate pair is no text and could be neither printed nor written.
    if b"\\ud" in data.lower():
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def build(kind: type[Record], fields: Any) -> Record:
    """A record of type `kind` from parsed JSON; raises `TypeError` where it does not match."""
    record = _value(kind, fields)
    assert isinstance(record, kind)
    return record


def shown(value: object) -> str:
    """A value from a file as it stands in a sentence: its `repr`, cut to a line."""
    return _SHORT.repr(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} is there twice")
    return fields


def _check_values(document: Any) -> None:
    """Refuse numbers that are none, and more levels than a real file has."""
    level: list[tuple[object, Any]] = [("", document)]
    for _ in range(_MAX_DEPTH):
        below: list[tuple[object, Any]] = []
        for key, value in level:
            if isinstance(value, dict | list):
                below += _items(key, value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{shown(key)} is {value}, which is no number")
            elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
                raise ValueError(f"{shown(key)} is a number of {value.bit_length()} bits")
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def _items(key: object, value: dict[str, Any] | list[Any]) -> Iterable[tuple[object, Any]]:
    """What lies in a container, by its key; what lies in a list goes by the list's."""
    return value.items() if isinstance(value, dict) else [(key, item) for item in value]


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, found {shown(value)}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(value.keys() - hints.keys())
        if unknown:
            raise TypeError(f"unknown field {shown(unknown[0])}")
        fields: dict[str, Any] = {name: _value(hints[name], item) for name, item in value.items()}
        construct: Any = kind
        return construct(**fields)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        inner = [part for part in parts if part is not types.NoneType]
        if len(inner) == 1:
            return _value(inner[0], value)
        if not isinstance(value, tuple(inner)):
            raise TypeError(f"expected one of {inner}, found {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, found {shown(value)}")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_value(part, item) for part, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, found {shown(value)}")
        return {_value(parts[0], key): _value(parts[1], item) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    # In Python, though not in JSON, true is a whole number.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {kind.__name__}, found {shown(value)}")
    return value
