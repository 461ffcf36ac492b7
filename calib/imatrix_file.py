"""The file that `llama-imatrix` writes: sums and counts by tensor, and where they lie.

A GGUF with `general.type` `imatrix`, the keys `imatrix.datasets`, `imatrix.chunk_count` and
`imatrix.chunk_size`, and two F32 tensors for the matrix NAME: `NAME.in_sum2`, the sums of squared
inputs, and `NAME.counts`, their number (ggml-org/llama.cpp, tools/imatrix/imatrix.cpp). Sums
without squares, `NAME.in_sum`, may be there too and are not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from tightfit.calib.gguf_header import check_gguf
from tightfit.errors import CalibrationError
from tightfit.records import shown

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_MAGIC = b"GGUF"
_HEAD_BYTES = 512
"""Of an old file: enough for its first entry's name."""
_NAMES_SHOWN = 3
"""Names that a sentence lists; a model has thousands."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredRow:
    """The numbers of one tensor of the file, in one row."""

    offset_bytes: int
    """From the file's start."""
    values: NDArray[np.float32]
    """A view of the mapped file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImatrixFile:
    """What the file says, by GGUF name of the tensor; not yet of any model."""

    path: Path
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_tokens: int
    sums: dict[str, StoredRow]
    counts: dict[str, StoredRow]


def open_imatrix_file(path: Path) -> ImatrixFile:
    """Map an importance matrix.

    Raises `CalibrationError` for a file that is missing, damaged, in the old format, or a GGUF of
    another kind.
    """
    reader = _open(path)
    sums, counts = _pairs(path, reader)
    return ImatrixFile(
        path=path,
        datasets=_texts(path, reader, "imatrix.datasets"),
        n_chunks=_count(path, reader, "imatrix.chunk_count"),
        chunk_tokens=_count(path, reader, "imatrix.chunk_size"),
        sums=sums,
        counts=counts,
    )


def read_rows(path: Path, offset_bytes: int, rows: int, columns: int) -> NDArray[np.float32]:
    """(rows, columns) numbers of an importance matrix that was opened before."""
    values = np.fromfile(path, dtype=np.float32, count=rows * columns, offset=offset_bytes)
    if values.size != rows * columns:
        raise _damaged(path, "it became shorter since it was opened")
    return values.reshape(rows, columns)


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _open(path: Path) -> GGUFReader:
    if not path.is_file():
        raise CalibrationError(
            f"the importance matrix {path} does not exist", hint="give the path of a .gguf file"
        )
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head.startswith(_MAGIC):
        raise _not_gguf(path, head)
    try:
        check_gguf(path)
        reader = GGUFReader(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    kind = _contents(reader, "general.type") or "model"
    if kind != "imatrix":
        raise CalibrationError(
            f"{path} is a GGUF of type {shown(kind)}, not an importance matrix",
            allowed="a GGUF whose general.type is imatrix",
            hint="llama-imatrix -m MODEL.gguf -f TEXT -o imatrix.gguf computes one",
        )
    return reader


def _pairs(path: Path, reader: GGUFReader) -> tuple[dict[str, StoredRow], dict[str, StoredRow]]:
    """Sums and counts by the GGUF name of their tensor."""
    found: dict[str, dict[str, StoredRow]] = {_SUMS: {}, _COUNTS: {}}
    for tensor in reader.tensors:
        for ending, by_name in found.items():
            if not tensor.name.endswith(ending):
                continue
            if tensor.tensor_type is not GGMLQuantizationType.F32:
                raise _damaged(path, f"{tensor.name} is {tensor.tensor_type.name}, not F32")
            by_name[tensor.name.removesuffix(ending)] = StoredRow(
                offset_bytes=tensor.data_offset, values=tensor.data.reshape(-1)
            )
    sums, counts = found[_SUMS], found[_COUNTS]
    alone = sums.keys() ^ counts.keys()
    if alone:
        raise _damaged(path, f"sums or counts of {some(sorted(alone))} are missing")
    return sums, counts


def _texts(path: Path, reader: GGUFReader, key: str) -> tuple[str, ...]:
    found = _contents(reader, key)
    match found:
        case None:
            return ()
        case list() if all(isinstance(item, str) for item in found):
            return tuple(found)
        case _:
            raise _damaged(path, f"{key} is {shown(found)}")


def _count(path: Path, reader: GGUFReader, key: str) -> int:
    match _contents(reader, key):
        case None:
            return 0
        case int(count) if count >= 0:
            return count
        case other:
            raise _damaged(path, f"{key} is {shown(other)}")


def _contents(reader: GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _not_gguf(path: Path, head: bytes) -> CalibrationError:
    if b".weight" not in head:
        return CalibrationError(
            f"{path} is not an importance matrix",
            allowed="the GGUF that llama-imatrix writes",
            hint="llama-imatrix -m MODEL.gguf -f TEXT -o imatrix.gguf computes one",
        )
    return CalibrationError(
        f"{path} is an importance matrix in llama.cpp's old format, which has no count for each "
        "expert",
        allowed="the GGUF that llama-imatrix writes since July 2025",
        hint=f"llama-imatrix --in-file {path.name} -o imatrix.gguf converts it (add -m with any "
        "GGUF model where it asks for one)",
    )


def _damaged(path: Path, reason: str) -> CalibrationError:
    return CalibrationError(
        f"{path} is not a whole importance matrix: {reason}", hint="download or compute it again"
    )
