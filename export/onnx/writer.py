"""Write an ONNX model and its data file, one chunk of a weight in memory at a time.

Everything goes into a hidden folder beside the result and is renamed into place when whole and on
disk, the model last, so that an interruption leaves nothing that looks complete. Equal input gives
equal bytes: tensors keep the graph's order, gaps are zeros, and nothing of the time or the machine
is written.

Source: ONNX specification, "External Data".
"""

import os
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from tightfit.errors import ArtifactError
from tightfit.export.onnx.graph import OnnxGraph, StoredTensor
from tightfit.files import Progress, move_into_place, partial_folder, refuse_existing


def write_onnx(
    path: Path,
    graph: OnnxGraph,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Write the model at `path` and its weights beside it; returns both files, the model first.

    Raises `ArtifactError` when a result is in the way and `overwrite` is false, when the disk has
    no room, and when a weight's data does not match its type and shape.
    """
    names = (path.name, _data_file(graph))
    path.parent.mkdir(parents=True, exist_ok=True)
    places = [path.with_name(name) for name in names]
    old = [place for place in places if place.exists()]
    refuse_existing(old, overwrite=overwrite)
    model = ir.to_proto(graph.model).SerializeToString(deterministic=True)
    with partial_folder(path, needed_bytes=len(model) + graph.data_bytes) as folder:
        with (folder / names[1]).open("wb") as file:
            _write_data(file, graph, progress)
            _flush_to_disk(file)
        with (folder / names[0]).open("wb") as file:
            file.write(model)
            _flush_to_disk(file)
        model_path, data_path = move_into_place(names, folder, path.parent, old)
    return model_path, data_path


def _data_file(graph: OnnxGraph) -> str:
    """Name of the one file that all external tensors lie in."""
    values = graph.model.graph.initializers.values()
    tensors = (value.const_value for value in values)
    locations = {
        str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)
    }
    assert len(locations) == 1, locations
    return locations.pop()


def _write_data(file: BinaryIO, graph: OnnxGraph, progress: Progress | None) -> None:
    end = 0
    for offset, tensor in graph.data:
        assert offset >= end, (tensor.name, offset, end)
        file.write(bytes(offset - end))
        _write_tensor(file, tensor)
        end = offset + tensor.n_bytes
        if progress:
            progress(tensor.name, end, graph.data_bytes)
    assert end == graph.data_bytes, (end, graph.data_bytes)


def _write_tensor(file: BinaryIO, tensor: StoredTensor) -> None:
    written_bytes = 0
    for chunk in tensor.chunks():
        written_bytes += file.write(chunk)
    if written_bytes != tensor.n_bytes:
        raise ArtifactError(
            f"{tensor.name} came as {written_bytes} bytes",
            allowed=f"{tensor.dtype.name} {list(tensor.shape)} is stored as {tensor.n_bytes} bytes",
            hint="the job directory does not match this export: remove it and export again",
        )


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
