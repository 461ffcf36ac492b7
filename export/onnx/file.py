"""An ONNX file and its data file, opened by the `onnx` package and checked before use.

Each tensor is memory-mapped by itself when it is asked for, so a model of any size can be read
and what is no longer used leaves memory. A file that is cut short or damaged is refused before
anything of it is used.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tightfit.errors import ArtifactError

_BITS_PER_BYTE = 8
ELEMENT_BITS: Mapping[int, int] = {
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT: 32,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
}
"""Element types that weights are stored in."""


class OnnxFile:
    """The graph, and the bytes of what lies in the data file."""

    def __init__(self, path: Path) -> None:
        """Open and check; raises `ArtifactError` when the files are damaged or not both there."""
        self.path = path
        self.graph = read_model(path).graph
        self.external: dict[str, TensorProto] = {
            tensor.name: tensor
            for tensor in self.graph.initializer
            if tensor.data_location == TensorProto.EXTERNAL
        }
        """Tensors of the data file by name, in the graph's order."""
        self._data_files: dict[str, tuple[Path, int]] = {}
        for tensor in self.external.values():
            self.raw(tensor)

    def place(self, tensor: TensorProto) -> tuple[str, int]:
        """The data file and the offset in it: the same for two views of the same bytes."""
        where = {entry.key: entry.value for entry in tensor.external_data}
        return where.get("location", ""), int(where.get("offset", "0"))

    def raw(self, tensor: TensorProto) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, mapped from the file."""
        if tensor.data_type not in ELEMENT_BITS:
            raise self.damaged(f"{tensor.name} has the element type {tensor.data_type}")
        n_bits = prod(tensor.dims) * ELEMENT_BITS[tensor.data_type]
        n_bytes = -(-n_bits // _BITS_PER_BYTE)
        try:
            location, offset = self.place(tensor)
            where = {entry.key: entry.value for entry in tensor.external_data}
            length = int(where.get("length", n_bytes))
        except ValueError as error:
            raise self.damaged(f"where {tensor.name} lies is not a number") from error
        if length != n_bytes:
            raise self.damaged(f"{tensor.name} has {length} bytes and its shape needs {n_bytes}")
        data_file, size_bytes = self._data_file(location)
        if offset < 0 or offset + n_bytes > size_bytes:
            raise self.damaged(
                f"{tensor.name} would end at byte {offset + n_bytes} of {location}, which has "
                f"{size_bytes}"
            )
        if n_bytes == 0:  # nothing to map
            return np.empty(0, dtype=np.uint8)
        return np.memmap(data_file, dtype=np.uint8, mode="r", offset=offset, shape=(n_bytes,))

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """A tensor of whole-byte elements, a view of the mapped file."""
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return self.raw(tensor).view(dtype).reshape(tuple(tensor.dims))

    def damaged(self, reason: str) -> ArtifactError:
        """The error to raise for what is wrong in it."""
        return _damaged(self.path, reason)

    def _data_file(self, location: str) -> tuple[Path, int]:
        """A data file and its size in bytes."""
        if location not in self._data_files:
            # The name comes from the file: it must not lead out of the folder.
            if not location or Path(location).name != location:
                raise self.damaged(f"its data file is named {location!r}")
            data_path = self.path.with_name(location)
            if not data_path.is_file():
                raise ArtifactError(
                    f"{data_path} does not exist, and {self.path.name} has its weights in it",
                    hint="both files belong in one folder: copy or download it again",
                )
            self._data_files[location] = data_path, data_path.stat().st_size
        return self._data_files[location]


def read_model(path: Path) -> onnx.ModelProto:
    """The model without its weights; raises `ArtifactError` when it is not one."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist", hint="give the path of an .onnx file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise _damaged(path, "its graph cannot be parsed") from error
    if not model.graph.node:
        raise _damaged(path, "it has no nodes")
    return model


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a whole ONNX model: {reason}",
        hint="download it again with its data file, or export it again with --overwrite",
    )
