"""Exactness: a file read back by somebody else's reader holds the quantizer's numbers, bit for bit.

The readers are the `gguf` package, and for ONNX the `onnx` package with onnxruntime. A GGUF, whose
numbers are rounded while it is written, is compared by their digests.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.readback import StoredTensor
from tightfit.export.manifest import values_sha256
from tightfit.export.weights import Rows
from tightfit.threads import in_order

Chunks = Iterable[NDArray[np.float32]]
_ALLOWED = "an artifact must hold the quantizer's numbers exactly"
_HINT = "the disk is failing, or tightfit has a defect: export again, and report it if it returns"


def check_exact(
    file: str,
    stored: Iterable[tuple[str, Chunks]],
    expected: Mapping[str, Callable[[], Rows]],
    on_tensor: Callable[[], None],
) -> dict[str, str]:
    """Compare every tensor read from `file`, some rows at a time, with the quantizer's values.

    Returns their `values_sha256`. Raises `ArtifactError` at the first difference.
    """
    hashes: dict[str, str] = {}
    for name, chunks in stored:
        hashes[name] = _compare(file, name, chunks, expected[name]())
        on_tensor()
    assert hashes.keys() == expected.keys(), "the writer wrote what it was given"
    return hashes


def check_digests(
    stored: Iterable[StoredTensor],
    written: Mapping[str, str],
    threads: int,
    on_tensor: Callable[[], None],
) -> None:
    """Compare every tensor of a GGUF with the `values_sha256` of what was written, by name.

    Raises as `check_exact`.
    """
    found: set[str] = set()
    for tensor, digest in in_order((functools.partial(_digest, of) for of in stored), threads):
        if digest != written[tensor.name]:
            raise ArtifactError(
                f"{tensor.file.name}: {tensor.name} reads back with other numbers",
                allowed=_ALLOWED,
                hint=_HINT,
            )
        found.add(tensor.name)
        on_tensor()
    assert found == written.keys(), "the writer wrote what it was given"


def _digest(tensor: StoredTensor) -> tuple[StoredTensor, str]:
    return tensor, values_sha256(tensor.chunks())


def _compare(file: str, name: str, chunks: Chunks, wanted_rows: Rows) -> str:
    digest = hashlib.sha256()
    start = 0
    for chunk in chunks:
        stop = start + len(chunk)
        wanted = np.ascontiguousarray(wanted_rows(slice(start, stop)).numpy(), dtype="<f4")
        different = int((np.asarray(chunk).view(np.uint32) != wanted.view(np.uint32)).sum())
        if different:
            raise ArtifactError(
                f"{file}: {name} reads back with {different} of {chunk.size} numbers changed in "
                f"rows {start} to {stop}",
                allowed=_ALLOWED,
                hint=_HINT,
            )
        digest.update(wanted.data)
        start = stop
    return digest.hexdigest()
