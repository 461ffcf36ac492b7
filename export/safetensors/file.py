"""safetensors files written tensor by tensor, whole or not at all.

Format (github.com/huggingface/safetensors, "Format"): eight bytes little-endian N, N bytes of JSON
(name -> dtype, shape, data_offsets), the data. The tensors lie as the reference implementation puts
them, widest type first and then by name, so that each is aligned; as all sizes are known before any
tensor is loaded, the header comes first and each tensor goes to its place. A checkpoint of several
files has an index.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightfit.calib.safetensors_header import TORCH_DTYPES
from tightfit.calib.tensor_index import INDEX_NAME, SINGLE_NAME
from tightfit.errors import ArtifactError
from tightfit.export.safetensors.pieces import Piece, TensorSpec
from tightfit.files import Progress, move_into_place, partial_folder, refuse_existing

MAX_SHARD_BYTES = 5 * 10**9
"""What the Hub and transformers split at."""
_LENGTH_BYTES = 8
_HEADER_ALIGNMENT = 8
_HEADER_BYTES = 256
"""Of one tensor in a header, generously."""
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def write_checkpoint(
    folder: Path,
    pieces: Sequence[Piece],
    *,
    texts: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write all tensors into `folder`; returns the files, the one that a reader opens first.

    `texts` are configurations by name: they get their place after an old result lost its first
    file and before the new one has it, so that no reader finds weights beside another's.
    A file is closed before it passes `max_shard_bytes` (never with less than one piece). Raises
    `ArtifactError` when a result is in the way and `overwrite` is false, or the disk is full.
    """
    old = _existing(folder)
    refuse_existing(old, overwrite=overwrite)
    shards = _shards(pieces, max_shard_bytes)
    total_bytes = sum(piece.nbytes for piece in pieces)
    n_tensors = sum(len(piece.specs) for piece in pieces)
    first = SINGLE_NAME if len(shards) == 1 else INDEX_NAME
    needed_bytes = total_bytes + n_tensors * _HEADER_BYTES
    with partial_folder(folder / first, needed_bytes=needed_bytes) as partial:
        names = [_shard_name(number, len(shards)) for number in range(len(shards))]
        done_bytes = 0
        for name, shard in zip(names, shards, strict=True):
            done_bytes = _write_shard(partial / name, shard, done_bytes, total_bytes, progress)
        if first == INDEX_NAME:
            _write_index(partial / INDEX_NAME, names, shards, total_bytes)
            names = [INDEX_NAME, *names]
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
            names.append(name)
        return move_into_place(names, partial, folder, old)


def _existing(folder: Path) -> list[Path]:
    found = [folder / name for name in (INDEX_NAME, SINGLE_NAME) if (folder / name).exists()]
    return [*found, *sorted(folder.glob("model-*-of-*.safetensors"))]


def _shards(pieces: Sequence[Piece], max_shard_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    size_bytes = 0
    for piece in pieces:
        if shards[-1] and size_bytes + piece.nbytes > max_shard_bytes:
            shards.append([])
            size_bytes = 0
        shards[-1].append(piece)
        size_bytes += piece.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return SINGLE_NAME if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(
    path: Path,
    pieces: Sequence[Piece],
    done_bytes: int,
    total_bytes: int,
    progress: Progress | None,
) -> int:
    """Write one file; returns the bytes written so far."""
    specs = [spec for piece in pieces for spec in piece.specs]
    header, offsets = _header(specs)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        start = file.tell()
        file.truncate(start + sum(spec.nbytes for spec in specs))
        for piece in pieces:
            for spec, tensor in zip(piece.specs, piece.load(), strict=True):
                file.seek(start + offsets[spec.name])
                file.write(_data(spec, tensor))
            done_bytes += piece.nbytes
            if progress:
                progress(piece.specs[0].name, done_bytes, total_bytes)
        file.flush()
        os.fsync(file.fileno())
    return done_bytes


def _header(specs: Sequence[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The JSON, padded, and where each tensor begins behind it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name)):
        assert spec.name not in offsets, f"{spec.name} is stored twice"
        offsets[spec.name] = end
        end += spec.nbytes
        entries[spec.name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[spec.name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _HEADER_ALIGNMENT), offsets


def _data(spec: TensorSpec, tensor: Tensor) -> memoryview:
    if (tensor.dtype, tuple(tensor.shape)) != (spec.dtype, spec.shape):
        raise ArtifactError(
            f"{spec.name} came as {tensor.dtype} {tuple(tensor.shape)}",
            allowed=f"{spec.dtype} {spec.shape}",
            hint="the job directory does not match this export: remove it and export again",
        )
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_index(
    path: Path, names: Sequence[str], shards: Sequence[Sequence[Piece]], total_bytes: int
) -> None:
    weight_map = {
        spec.name: name
        for name, shard in zip(names, shards, strict=True)
        for piece in shard
        for spec in piece.specs
    }
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    with path.open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
