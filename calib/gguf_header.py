"""Whether a file is a GGUF that can be read without harm, from its header alone.

Readers trust what a header says: the `gguf` package loops over 2^60 items that are not there, or
nests arrays until the stack ends. So the header is walked here first, with every count and length
held against the file's size, and the package reads what passed. The rules are those of llama.cpp
(`gguf_init_from_file` in ggml/src/gguf.cpp) and of the GGUF specification: tensors lie one after
the other, padded to the alignment, in the order of their list.
"""

import math
import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tightfit.records import shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
"""GGML_MAX_DIMS."""
_MAX_KEYS = 1 << 16
"""A model has some dozen."""
_MAX_TENSORS = 1 << 20
"""R1 has 1,025; with every expert by itself it would have 92,000."""
_MAX_ITEMS = 1 << 23
"""Of all arrays together. The largest vocabularies have 260,000 tokens and 510,000 merges, and an
item takes a hundred bytes when it is read."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_NUMBER_BYTES = {
    GGUFValueType.UINT8: 1,
    GGUFValueType.INT8: 1,
    GGUFValueType.UINT16: 2,
    GGUFValueType.INT16: 2,
    GGUFValueType.UINT32: 4,
    GGUFValueType.INT32: 4,
    GGUFValueType.FLOAT32: 4,
    GGUFValueType.BOOL: 1,
    GGUFValueType.UINT64: 8,
    GGUFValueType.INT64: 8,
    GGUFValueType.FLOAT64: 8,
}


def check_gguf(path: Path) -> None:
    """Raise `ValueError` with the reason when a file is no GGUF, is cut, or is made to do harm."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        cursor.skip(len(_MAGIC))
        version = cursor.number(_U32)
        if version not in _VERSIONS:
            raise ValueError(_wrong_version(version))
        n_tensors, n_keys = cursor.number(_U64), cursor.number(_U64)
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise ValueError(f"it claims {n_tensors} tensors and {n_keys} keys")
        alignment = _check_keys(cursor, n_keys)
        _check_tensors(cursor, n_tensors, alignment)


class _Cursor:
    """Where the walk is; every step stays within the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0
        self._items_left = _MAX_ITEMS

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self._data)

    def skip(self, n_bytes: int) -> int:
        """Where `n_bytes` began that are now behind."""
        start = self.at
        if n_bytes > self.size_bytes - start:
            raise ValueError(f"it is cut: {n_bytes} bytes at {start} go beyond its end")
        self.at = start + n_bytes
        return start

    def number(self, form: struct.Struct) -> int:
        """A whole number."""
        (value,) = form.unpack_from(self._data, self.skip(form.size))
        return int(value)

    def text(self) -> str:
        """A string; what is not UTF-8 raises `ValueError`."""
        start = self.skip(self.number(_U64))
        return self._data[start : self.at].decode("utf-8")

    def name(self) -> str:
        """A string that can stand in a message."""
        name = self.text()
        if not name or not name.isprintable():
            raise ValueError(f"{shown(name)} is no name")
        return name

    def array(self) -> None:
        """Pass an array of numbers or strings."""
        kind, count = self.number(_U32), self.number(_U64)
        if count > self._items_left:
            raise ValueError(f"an array has {count} items")
        self._items_left -= count
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                self.text()
        else:
            self.skip(count * _number_bytes(kind))


def _wrong_version(version: int) -> str:
    # Versions are small numbers: one in the other byte order has its low half empty.
    if version & 0xFFFF == 0:
        return "its numbers are in the other byte order"
    return f"it is of version {version}"


def _check_keys(cursor: _Cursor, n_keys: int) -> int:
    """Pass the metadata; the alignment of the data."""
    seen, alignment = set(), _DEFAULT_ALIGNMENT
    for _ in range(n_keys):
        key = cursor.name()
        if key in seen:
            raise ValueError(f"the key {shown(key)} is there twice")
        seen.add(key)
        kind = cursor.number(_U32)
        if key == _ALIGNMENT_KEY:
            alignment = _read_alignment(cursor, kind)
        elif kind == GGUFValueType.STRING:
            cursor.text()
        elif kind == GGUFValueType.ARRAY:
            cursor.array()
        else:
            cursor.skip(_number_bytes(kind))
    return alignment


def _read_alignment(cursor: _Cursor, kind: int) -> int:
    alignment = cursor.number(_U32) if kind == GGUFValueType.UINT32 else 0
    if alignment.bit_count() != 1:
        raise ValueError(f"{_ALIGNMENT_KEY} is no power of two")
    return alignment


def _check_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> None:
    """Pass the list of tensors and hold it against the data that follows."""
    places: dict[str, tuple[int, int]] = {}
    for _ in range(n_tensors):
        name = cursor.name()
        if name in places:
            raise ValueError(f"the tensor {shown(name)} is there twice")
        n_bytes = _tensor_bytes(cursor, name)
        places[name] = cursor.number(_U64), n_bytes
    start = _padded(cursor.at, alignment)
    expected = 0
    for name, (offset, n_bytes) in places.items():
        if offset != expected:
            raise ValueError(
                f"{shown(name)} begins at byte {offset} of the data, and the one before it ends at "
                f"{expected}"
            )
        if start + offset + n_bytes > cursor.size_bytes:
            raise ValueError(f"it is cut: {shown(name)} goes beyond its end")
        expected = _padded(offset + n_bytes, alignment)


def _tensor_bytes(cursor: _Cursor, name: str) -> int:
    """Pass a tensor's dimensions, the row width first, and type; the bytes of its data."""
    n_dimensions = cursor.number(_U32)
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {n_dimensions} dimensions")
    shape = [cursor.number(_U64) for _ in range(n_dimensions)]
    kind = cursor.number(_U32)
    if kind not in GGML_QUANT_SIZES:
        raise ValueError(f"{shown(name)} is of the unknown type {kind}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if 0 in shape or shape[0] % block:
        raise ValueError(f"{shown(name)} has the shape {shape}, in blocks of {block}")
    return math.prod(shape) // block * block_bytes


def _number_bytes(kind: int) -> int:
    """Bytes of a number; raises `ValueError` for a type that is none."""
    if kind not in _NUMBER_BYTES:
        raise ValueError(f"a value is of the unknown type {kind}")
    return _NUMBER_BYTES[GGUFValueType(kind)]


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
