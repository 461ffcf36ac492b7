"""Headers of safetensors files: which tensors, of what type and shape, and where.

Format (github.com/huggingface/safetensors, "Format"): eight bytes little-endian N, N bytes of JSON
(name -> dtype, shape, data_offsets relative to the end of the header), then the data without gaps.
Tensors themselves are read by the `safetensors` package; the headers are read here so that a
damaged or hostile file is found before any work, by its name and without touching its data. What
passes here the package takes too, and reads as the same tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tightfit.errors import CheckpointError
from tightfit.records import parse_json, shown

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_LFS_MARK = b"version https://git-lfs"
_METADATA = "__metadata__"
_MAX_NAME = 512  # characters; R1's longest name has 60
_MAX_RANK = 8  # weights have two dimensions, those of convolutions four or five
_MAX_TENSOR_BYTES = 2**63  # what a signed offset reaches

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor as a file holds it."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; raises `CheckpointError` for a damaged one."""
    size_bytes = file.stat().st_size
    text = _read_text(file, size_bytes)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _damaged(file, f"its header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    _check_metadata(file, header.pop(_METADATA, {}))
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], span = _read_entry(file, name, entry)
        spans.append(span)
    _check_extent(file, spans, size_bytes - _LENGTH_BYTES - len(text))
    return tensors


def is_tensor_name(name: str) -> bool:
    """Whether a name can stand in a message and in a file: short, and nothing but characters."""
    return 0 < len(name) <= _MAX_NAME and name.isprintable()


def _read_text(file: Path, size_bytes: int) -> bytes:
    """The header's JSON."""
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise _damaged(file, f"it has only {size_bytes} bytes")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > _MAX_HEADER_BYTES:
            if (start + stream.read(len(_LFS_MARK)))[: len(_LFS_MARK)] == _LFS_MARK:
                raise CheckpointError(
                    f"{file}: a Git LFS pointer, not the file itself",
                    hint="run `git lfs pull` in that folder, or download it from the Hub",
                )
            raise _damaged(file, f"its header claims {header_bytes} bytes")
        # Before reading: a claim alone must not take memory.
        if header_bytes > size_bytes - _LENGTH_BYTES:
            raise _damaged(
                file, f"truncated: {size_bytes} bytes, its header alone has {header_bytes}"
            )
        return stream.read(header_bytes)


def _check_metadata(file: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(of, str) for of in metadata.values()):
        raise _damaged(file, f"{_METADATA!r} of its header is not an object of strings")


def _read_entry(file: Path, name: str, entry: object) -> tuple[StoredTensor, tuple[int, int]]:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": [*sizes],
            "data_offsets": [begin, end],
        } if is_tensor_name(name) and dtype.isidentifier() and _are_counts(begin, end):
            pass
        case _:
            raise _damaged(file, f"the header's entry for {shown(name)} is malformed")
    if len(sizes) > _MAX_RANK or not _are_counts(*sizes):
        raise _damaged(file, f"the header gives {name!r} the shape {shown(sizes)}")
    if dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{file}: {name!r} is stored as {dtype:.20}",
            allowed="weights are read from BF16, F16, F32 and F8_E4M3",
            hint="give the original checkpoint, not one that is already quantized",
        )
    itemsize = TORCH_DTYPES[dtype].itemsize
    # Sizes beside a 0 too: their product overflows in other readers.
    if math.prod(max(1, size) for size in sizes) * itemsize >= _MAX_TENSOR_BYTES:
        raise _damaged(file, f"the header gives {name!r} the shape {shown(sizes)}")
    stored = StoredTensor(
        file=file,
        dtype=TORCH_DTYPES[dtype],
        shape=tuple(sizes),
        nbytes=math.prod(sizes) * itemsize,
    )
    if end - begin != stored.nbytes:
        raise _damaged(
            file,
            f"{name!r} spans {end - begin} bytes, its shape {stored.shape} in {dtype} needs "
            f"{stored.nbytes}",
        )
    return stored, (begin, end)


def _are_counts(*values: object) -> bool:
    """Whether all are whole numbers, 0 or more; true and false are none."""
    return all(type(value) is int and value >= 0 for value in values)


def _check_extent(file: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Hold the tensors against the file's size: no gap, no overlap, nothing missing or left."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise _damaged(file, f"the header leaves a gap or an overlap at byte {reached}")
        reached = end
    if reached > data_bytes:
        raise _damaged(file, f"truncated: {data_bytes} of {reached} bytes of tensor data are there")
    if reached < data_bytes:
        raise _damaged(file, f"{data_bytes - reached} bytes follow the last tensor")


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: not a whole safetensors file: {why}",
        hint="delete the file and download it again",
    )
