"""One key with its typed value in a GGUF header."""

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

Scalar = int | float | bool | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A metadata key; an array has an `item_type`."""

    key: str
    value: Scalar | Sequence[Scalar]
    type: GGUFValueType
    item_type: GGUFValueType | None = None


def u32(key: str, value: int) -> Entry:
    """An unsigned 32-bit integer."""
    return Entry(key=key, value=value, type=GGUFValueType.UINT32)


def f32(key: str, value: float) -> Entry:
    """A 32-bit float."""
    return Entry(key=key, value=value, type=GGUFValueType.FLOAT32)


def flag(key: str, value: bool) -> Entry:
    """A boolean."""
    return Entry(key=key, value=value, type=GGUFValueType.BOOL)


def text(key: str, value: str) -> Entry:
    """A UTF-8 string."""
    return Entry(key=key, value=value, type=GGUFValueType.STRING)


def texts(key: str, values: Sequence[str]) -> Entry:
    """An array of strings."""
    return _array(key, values, GGUFValueType.STRING)


def i32s(key: str, values: Sequence[int]) -> Entry:
    """An array of signed 32-bit integers."""
    return _array(key, values, GGUFValueType.INT32)


def _array(key: str, values: Sequence[Scalar], item_type: GGUFValueType) -> Entry:
    return Entry(key=key, value=values, type=GGUFValueType.ARRAY, item_type=item_type)
