"""Exactness: a file read back by somebody else's reader holds the quantizer's numbers, bit for bit.

The readers are the `gguf` package, and for ONNX the `onnx` package with onnxruntime.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.weights import Rows

Chunks = Iterable[NDArray[np.float32]]


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
                allowed="an artifact must hold the quantizer's numbers exactly",
                hint="the disk is failing, or tightfit has a defect: export again, and report it "
                "if it returns",
            )
        digest.update(wanted.data)
        start = stop
    return digest.hexdigest()
