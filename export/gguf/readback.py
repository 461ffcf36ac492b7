"""Read GGUF files back, through the `gguf` package.

Tensors are memory-mapped and given one at a time, so a file of any size can be checked. A file
that is cut short, damaged or made to do harm is refused before anything of it is used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.naming import sibling_shards
from tightfit.export.gguf.reader import ArrayReader

SPLIT_COUNT = "split.count"
SPLIT_TENSORS_COUNT = "split.tensors.count"
_INTERNAL = "GGUF."
"""Prefix of the header's own numbers in the package's list of fields."""
_CHUNK_ELEMENTS = 1 << 22
"""Values that are dequantized at a time: 16 MB of float32."""
_ARRAY_PREVIEW = 4
"""Items of an array that a description keeps: vocabularies have 150,000."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredTensor:
    """A tensor as the file holds it."""

    name: str
    shape: tuple[int, ...]
    """In torch's order."""
    ggml_type: Type
    raw: NDArray[np.generic]
    """The stored data: float16, float32, or uint8 (..., row bytes); a view of the mapped file."""
    file: Path
    start: int
    """Byte of the file at which the data begins."""

    def values(self) -> NDArray[np.float32]:
        """float32 in `shape`, dequantized by the `gguf` package."""
        return _dequantize(self.raw, self.ggml_type)

    def part(self, number: int) -> NDArray[np.float32]:
        """The same of one matrix of a stack."""
        return _dequantize(self.raw[number], self.ggml_type)

    def chunks(self, first: int = 0, rows: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Values of some rows, or all, of its matrices one after the other, a few at a time.

        Read from the file, not mapped: what is checked once need not stay in memory.
        """
        width, dtype = self.raw.shape[-1], self.raw.dtype
        row_bytes = width * dtype.itemsize
        step = max(1, _CHUNK_ELEMENTS // self.shape[-1])
        stop = math.prod(self.shape[:-1]) if rows is None else first + rows
        for row in range(first, stop, step):
            count = min(step, stop - row) * width
            offset = self.start + row * row_bytes
            stored = np.fromfile(self.file, dtype, count, offset=offset)
            yield _dequantize(stored.reshape(-1, width), self.ggml_type)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSummary:
    """One line of a description."""

    name: str
    shape: tuple[int, ...]
    ggml_type: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a model's files hold."""

    files: tuple[Path, ...]
    metadata: dict[str, object]
    """Values by key; a long array is shortened to `[n items: a, b, ...]`."""
    tensors: tuple[TensorSummary, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors' data."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def read_tensors(path: Path) -> Iterator[StoredTensor]:
    """Every tensor of a model, whichever of its files is named, in file order."""
    for file, reader in zip(*_open_model(path), strict=True):
        for tensor in reader.tensors:
            yield StoredTensor(
                name=tensor.name,
                shape=_shape(tensor),
                ggml_type=tensor.tensor_type,
                raw=tensor.data,
                file=file,
                start=int(tensor.data_offset),
            )


def describe(path: Path) -> Description:
    """Metadata and tensor table of a model."""
    files, readers = _open_model(path)
    metadata = {
        key: _preview(field)
        for key, field in readers[0].fields.items()
        if not key.startswith(_INTERNAL)
    }
    tensors = tuple(
        TensorSummary(
            name=tensor.name,
            shape=_shape(tensor),
            ggml_type=tensor.tensor_type.name,
            size_bytes=tensor.n_bytes,
        )
        for reader in readers
        for tensor in reader.tensors
    )
    return Description(files=files, metadata=metadata, tensors=tensors)


def _open_model(path: Path) -> tuple[tuple[Path, ...], list[ArrayReader]]:
    """All files of a model, opened and checked against each other."""
    files = sibling_shards(path) or (path,)  # none: its name says that it is one of no files
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ArtifactError(
            f"{missing[0]} does not exist",
            hint="a model in several files needs all of them in one folder"
            if len(files) > 1
            else "give the path of a .gguf file",
        )
    readers = [_open(file) for file in files]
    count = _whole_number(readers[0], SPLIT_COUNT) or 1
    if count != len(files):
        raise ArtifactError(
            f"{path} says that it is one of {count} files, and its name says {len(files)}",
            hint="give it back the name that it was written with",
        )
    if count > 1:
        expected = _whole_number(readers[0], SPLIT_TENSORS_COUNT)
        names = [tensor.name for reader in readers for tensor in reader.tensors]
        if expected != len(names) or len(set(names)) != len(names):
            raise ArtifactError(
                f"{path}: the files hold {len(set(names))} tensors of {expected}",
                hint="the files are of different exports: export again",
            )
    return files, readers


def _open(path: Path) -> ArrayReader:
    try:
        return ArrayReader(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _whole_number(reader: ArrayReader, key: str) -> int | None:
    field = reader.fields.get(key)
    value = None if field is None else field.contents()
    return value if isinstance(value, int) else None


def _dequantize(raw: NDArray[np.generic], ggml_type: Type) -> NDArray[np.float32]:
    try:
        return dequantize(raw, ggml_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise ArtifactError(
            f"a tensor is stored as {ggml_type.name}, which no weights of a model are",
            hint="export again, or download the file from its author",
        ) from error


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a whole GGUF file: {reason}",
        hint="download it again, or export it again with --overwrite",
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _preview(field: Any) -> object:
    if field.types[0] is not GGUFValueType.ARRAY:
        return field.contents()
    items = field.contents()
    shown = [str(item) for item in items[:_ARRAY_PREVIEW]]
    if len(items) > len(shown):
        shown.append("...")
    return f"[{len(items)} items: {', '.join(shown)}]"
