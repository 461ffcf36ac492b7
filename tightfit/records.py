"""Records to JSON and back: frozen dataclasses of plain values, checked against their annotations.

`dataclasses.asdict` writes them; `build` reads them and refuses what does not match.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


def build(kind: type[Record], fields: Any) -> Record:
    """A record of type `kind` from parsed JSON; raises `TypeError` where it does not match."""
    record = _value(kind, fields)
    assert isinstance(record, kind)
    return record


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, found {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(value.keys() - hints.keys())
        if unknown:
            raise TypeError(f"unknown field {unknown[0]!r}")
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
            raise TypeError(f"expected one of {inner}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, found {value!r}")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_value(part, item) for part, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, found {value!r}")
        return {_value(parts[0], key): _value(parts[1], item) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value
