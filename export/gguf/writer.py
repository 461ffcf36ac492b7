"""Write a GGUF file, one tensor in memory at a time, of a stack of experts one matrix.

Everything goes into a hidden folder beside the result and is renamed into place when whole and
on disk, the first file last, so that an interruption leaves nothing that looks complete. Equal
input gives equal bytes: keys and tensors keep the order given, and nothing of the time or the
machine is written.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.naming import existing_shards
from tightfit.files import Progress, move_into_place, partial_folder, refuse_existing
from tightfit.targets.schemes.ggml_types import row_bytes, stored_bytes, tensor_bytes

MAX_NAME_BYTES = 63
"""Longest tensor name that llama.cpp loads (GGML_MAX_NAME is 64 with the closing zero)."""
_ARCHITECTURE = "general.architecture"
_ENTRY_OVERHEAD_BYTES = 24  # length of the key, type, length of an array or string
_TENSOR_INFO_BYTES = 128  # name, dimensions, type and offset, generously
_FLOAT_DTYPES = {Type.F32: np.dtype(np.float32), Type.F16: np.dtype(np.float16)}

# The package reports every file it opens; the command line has its own progress.
logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """A tensor to be written."""

    name: str
    """GGUF name, e.g. `blk.0.attn_q.weight`."""
    shape: tuple[int, ...]
    """In torch's order: the row width last."""
    ggml_type: Type
    loads: Sequence[Callable[[], NDArray[np.generic]]]
    """Its data, in one piece or in one for each matrix of a stack (the first dimension): float32 or
    float16 of that shape, or the stored bytes as uint8 (..., row bytes)."""


def write_gguf(
    path: Path,
    *,
    metadata: Sequence[Entry],
    tensors: Sequence[GgufTensor],
    split_max_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write a model and return its files: `path`, or `path`'s split names in order.

    A file is closed before it passes `split_max_bytes` of tensor data (never with less than one
    tensor). Raises `ArtifactError` when a result is in the way and `overwrite` is false, when the
    disk has no room, and when a tensor's data does not match its type and shape.
    """
    _check_tensors(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = existing_shards(path)
    refuse_existing(old, overwrite=overwrite)
    total_bytes = stored_bytes((tensor.ggml_type, tensor.shape) for tensor in tensors)
    needed_bytes = total_bytes + _metadata_bytes(metadata, len(tensors))
    with partial_folder(path, needed_bytes=needed_bytes) as folder:
        names = _write_files(folder / path.name, metadata, tensors, split_max_bytes, progress)
        return move_into_place(names, folder, path.parent, old)


def _write_files(
    path: Path,
    metadata: Sequence[Entry],
    tensors: Sequence[GgufTensor],
    split_max_bytes: int | None,
    progress: Progress | None,
) -> list[str]:
    """Write and flush the files; returns their names."""
    writer = _writer(path, metadata, split_max_bytes)
    for tensor in tensors:
        size_bytes = tensor_bytes(tensor.ggml_type, tensor.shape)
        # A shape of whole values: only uint8 would be taken for a shape in bytes.
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, size_bytes, tensor.ggml_type)
    names = [file.name for file in writer.format_shard_names(path)]
    total_bytes = sum(tensor_bytes(tensor.ggml_type, tensor.shape) for tensor in tensors)
    done_bytes = 0
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            pieces: Any = _Pieces(tensor)
            writer.write_tensor_data(pieces)
            done_bytes += pieces.nbytes
            if progress:
                progress(tensor.name, done_bytes, total_bytes)
        assert writer.fout is not None
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()
    return names


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


class _Pieces:
    """A tensor as far as the package asks: its size, and to be written. One piece is in memory."""

    def __init__(self, tensor: GgufTensor) -> None:
        self._tensor = tensor
        self.nbytes = tensor_bytes(tensor.ggml_type, tensor.shape)

    def tofile(self, file: BinaryIO) -> None:
        for load in self._tensor.loads:
            _checked_data(self._tensor, load()).tofile(file)


def _checked_data(tensor: GgufTensor, data: NDArray[np.generic]) -> NDArray[np.generic]:
    """A piece of the tensor's data, contiguous, after its shape and type are checked."""
    width_bytes = row_bytes(tensor.ggml_type, tensor.shape[-1])
    is_whole = len(tensor.loads) == 1 and (tensor.shape[0] > 1 or data.ndim == len(tensor.shape))
    shape = tensor.shape if is_whole else tensor.shape[1:]
    dtype = _FLOAT_DTYPES.get(tensor.ggml_type)
    if dtype is None or data.dtype == np.uint8:
        dtype, shape = np.dtype(np.uint8), (*shape[:-1], width_bytes)
    if data.dtype != dtype or data.shape != shape:
        raise ArtifactError(
            f"{tensor.name} came as {data.dtype} {data.shape}",
            allowed=f"{tensor.ggml_type.name} {tensor.shape} is stored as {dtype} {shape}",
            hint="the job directory does not match this export: remove it and export again",
        )
    return np.ascontiguousarray(data)


def _check_tensors(tensors: Sequence[GgufTensor]) -> None:
    names = [tensor.name for tensor in tensors]
    assert names, "a GGUF without tensors"
    assert len(names) == len(set(names)), "a tensor name appears twice"
    assert all(len(tensor.loads) in (1, tensor.shape[0]) for tensor in tensors), "missing pieces"
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
