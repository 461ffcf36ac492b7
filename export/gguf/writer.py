"""Write a GGUF file, a few pieces of a tensor in memory at a time.

Everything goes into a hidden folder beside the result, or into one that outlives an interruption,
and is renamed into place when whole and on disk, the first file last, so that an interruption
leaves nothing that looks complete. Equal input gives equal bytes: keys and tensors keep the order
given, and nothing of the time or the machine is written.
"""

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFWriter
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.naming import existing_shards
from tightfit.export.gguf.written import Written, WrittenTensor
from tightfit.files import (
    Progress,
    kept_folder,
    move_into_place,
    partial_folder,
    refuse_existing,
)
from tightfit.targets.schemes.ggml_types import row_bytes, stored_bytes, tensor_bytes
from tightfit.threads import in_order

MAX_NAME_BYTES = 63
"""Longest tensor name that llama.cpp loads (GGML_MAX_NAME is 64 with the closing zero)."""
_ARCHITECTURE = "general.architecture"
_ENTRY_OVERHEAD_BYTES = 24  # length of the key, type, length of an array or string
_TENSOR_INFO_BYTES = 128  # name, dimensions, type and offset, generously
_FLOAT_DTYPES: Mapping[Type, np.dtype[Any]] = {
    Type.F32: np.dtype(np.float32),
    Type.F16: np.dtype(np.float16),
}

# The package reports every file it opens; the command line has its own progress.
logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some rows of a tensor, or matrices of a stack, as they are stored."""

    data: NDArray[np.generic]
    """float32 or float16 with the tensor's width, or the stored bytes as uint8 (..., row bytes)."""
    values: Iterable[NDArray[np.float32]] = ()
    """What a reader must get, some rows at a time; read once, and only where
    `written` keeps their digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """A tensor to be written."""

    name: str
    """GGUF name, e.g. `blk.0.attn_q.weight`."""
    shape: tuple[int, ...]
    """In torch's order: the row width last."""
    ggml_type: Type
    loads: Sequence[Callable[[], Piece]]
    """Its pieces from the top; where there are threads, called in several at once."""

    @property
    def size_bytes(self) -> int:
        """Of its stored data."""
        return tensor_bytes(self.ggml_type, self.shape)

    @property
    def n_rows(self) -> int:
        """Of all its matrices; a vector is one."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor's data goes."""

    tensor: GgufTensor
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """One of the files."""

    name: str
    header: bytes
    """Up to the first tensor's data."""
    places: tuple[_Place, ...]
    size_bytes: int


def write_gguf(
    path: Path,
    *,
    metadata: Sequence[Entry],
    tensors: Sequence[GgufTensor],
    split_max_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    threads: int = 1,
    unfinished: Path | None = None,
    written: Written | None = None,
    check: Callable[[Sequence[Path]], None] | None = None,
) -> tuple[Path, ...]:
    """Write a model and return its files: `path`, or `path`'s split names in order.

    A file is closed before it passes `split_max_bytes` of tensor data (never with less than one
    tensor). `unfinished` is a folder on the same disk that is left as it is by a failure: the same
    call goes on behind the tensors that `written` knows of, which is filled in. `check` is given
    the files before they get their place, and raises to refuse them.
    Raises `ArtifactError` when a result is in the way and `overwrite` is false, when the
    disk has no room, and when a tensor's data does not match its type and shape.
    """
    _check_tensors(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = existing_shards(path)
    refuse_existing(old, overwrite=overwrite)
    total_bytes = stored_bytes((tensor.ggml_type, tensor.shape) for tensor in tensors)
    needed_bytes = total_bytes + _metadata_bytes(metadata, len(tensors))
    beside = (
        partial_folder(path, needed_bytes=needed_bytes)
        if unfinished is None
        else kept_folder(unfinished, path, needed_bytes=needed_bytes)
    )
    with beside as folder:
        plans = _plans(folder / path.name, metadata, tensors, split_max_bytes)
        _write_files(folder, plans, written, progress, threads)
        if check:
            check([folder / plan.name for plan in plans])
        return move_into_place([plan.name for plan in plans], folder, path.parent, old)


def _plans(
    path: Path,
    metadata: Sequence[Entry],
    tensors: Sequence[GgufTensor],
    split_max_bytes: int | None,
) -> list[_Plan]:
    """The files with their headers, which the package writes."""
    headers = path.with_name("headers")
    shutil.rmtree(headers, ignore_errors=True)
    headers.mkdir()
    writer = _writer(headers / path.name, metadata, split_max_bytes)
    for tensor in tensors:
        # A shape of whole values: only uint8 would be taken for a shape in bytes.
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(
            tensor.name, tensor.shape, dtype, tensor.size_bytes, tensor.ggml_type
        )
    files = writer.format_shard_names(headers / path.name)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    by_name = {tensor.name: tensor for tensor in tensors}
    plans = []
    for file, infos in zip(files, writer.tensors, strict=True):
        header = file.read_bytes()
        start = _padded(len(header))
        places = []
        for name in infos:
            places.append(_Place(tensor=by_name[name], start=start))
            start += _padded(by_name[name].size_bytes)
        header = header.ljust(places[0].start, b"\0")
        plans.append(_Plan(name=file.name, header=header, places=tuple(places), size_bytes=start))
    shutil.rmtree(headers)
    return plans


def _write_files(
    folder: Path,
    plans: Sequence[_Plan],
    written: Written | None,
    progress: Progress | None,
    threads: int,
) -> None:
    """Write and flush the files, from where they are."""
    total_bytes = sum(place.tensor.size_bytes for plan in plans for place in plan.places)
    done_bytes = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(folder / plan.name)) for plan in plans]
        placed = [(file, at) for file, plan in zip(files, plans, strict=True) for at in plan.places]
        whole = {at.tensor.name for file, at in placed if written and _is_whole(file, at, written)}
        missing = [at.tensor for _, at in placed if at.tensor.name not in whole]
        pieces = in_order((load for tensor in missing for load in tensor.loads), threads)
        for file, plan in zip(files, plans, strict=True):
            file.seek(0)
            file.write(plan.header)
        for file, at in placed:
            if at.tensor.name not in whole:
                file.seek(at.start)
                _write_tensor(file, at.tensor, pieces, written)
            done_bytes += at.tensor.size_bytes
            if progress:
                progress(at.tensor.name, done_bytes, total_bytes)
        for file, plan in zip(files, plans, strict=True):
            file.truncate(plan.size_bytes)  # the padding behind the last tensor
            file.flush()
            os.fsync(file.fileno())


def _write_tensor(
    file: BinaryIO, tensor: GgufTensor, pieces: Iterator[Piece], written: Written | None
) -> None:
    """Write the tensor's next pieces where the file is."""
    stored, values = hashlib.sha256(), hashlib.sha256()

    def write(piece: Piece) -> int:
        data = _checked_data(tensor, piece.data)
        file.write(data.data)
        if written:
            stored.update(data.data)
            for chunk in piece.values:
                values.update(np.ascontiguousarray(chunk, dtype="<f4").data)
        return len(data)

    rows = sum(write(next(pieces)) for _ in tensor.loads)
    if rows != tensor.n_rows:
        raise _refusal(tensor, f"{rows} rows")
    if written:
        file.flush()
        written.add(
            WrittenTensor(
                name=tensor.name, data_sha256=stored.hexdigest(), values_sha256=values.hexdigest()
            )
        )


def _opened(path: Path) -> BinaryIO:
    path.touch()
    return path.open("rb+")


def _is_whole(file: BinaryIO, at: _Place, written: Written) -> bool:
    return written.holds(at.tensor.name, file, at.start, at.tensor.size_bytes)


def _padded(size_bytes: int) -> int:
    return GGUFWriter.ggml_pad(size_bytes, GGUF_DEFAULT_ALIGNMENT)


def _writer(path: Path, metadata: Sequence[Entry], split_max_bytes: int | None) -> GGUFWriter:
    keys = [entry.key for entry in metadata]
    assert len(keys) == len(set(keys)), "a metadata key appears twice"
    architecture = next(entry.value for entry in metadata if entry.key == _ARCHITECTURE)
    assert isinstance(architecture, str)
    # The package writes the architecture itself, as the first key.
    writer = GGUFWriter(path, architecture, split_max_size=split_max_bytes or 0)
    for entry in metadata:
        if entry.key != _ARCHITECTURE:
            writer.add_key_value(entry.key, entry.value, entry.type, entry.item_type)
    return writer


def _checked_data(tensor: GgufTensor, data: NDArray[np.generic]) -> NDArray[np.generic]:
    """A piece of the tensor's data, contiguous (rows, ...), its width and type checked."""
    dtype, width = _stored_row(tensor, data.dtype)
    if data.dtype != dtype or data.shape[-1:] != (width,):
        raise _refusal(tensor, f"{data.dtype} {data.shape}")
    return np.ascontiguousarray(data).reshape(-1, width)


def _stored_row(tensor: GgufTensor, given: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """Type and count of what a row is given as: floats, or bytes."""
    dtype = _FLOAT_DTYPES.get(tensor.ggml_type)
    if dtype is None or given == np.uint8:
        return np.dtype(np.uint8), row_bytes(tensor.ggml_type, tensor.shape[-1])
    return dtype, tensor.shape[-1]


def _refusal(tensor: GgufTensor, given: str) -> ArtifactError:
    dtype, width = _stored_row(tensor, np.dtype(np.float32))
    return ArtifactError(
        f"{tensor.name} came as {given}",
        allowed=f"{tensor.ggml_type.name} {tensor.shape} is stored as {dtype} "
        f"{(*tensor.shape[:-1], width)}",
        hint="the job directory does not match this export: remove it and export again",
    )


def _check_tensors(tensors: Sequence[GgufTensor]) -> None:
    names = [tensor.name for tensor in tensors]
    assert names, "a GGUF without tensors"
    assert len(names) == len(set(names)), "a tensor name appears twice"
    too_long = [name for name in names if len(name.encode()) > MAX_NAME_BYTES]
    assert not too_long, too_long


def _metadata_bytes(metadata: Sequence[Entry], n_tensors: int) -> int:
    """An estimate from above."""

    def size(entry: Entry) -> int:
        if isinstance(entry.value, str):
            return len(entry.value.encode())
        if isinstance(entry.value, Sequence):
            return sum(8 + len(str(item).encode()) for item in entry.value)
        return 8

    keys = sum(len(entry.key.encode()) + _ENTRY_OVERHEAD_BYTES + size(entry) for entry in metadata)
    return keys + n_tensors * _TENSOR_INFO_BYTES
