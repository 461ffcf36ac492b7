"""Exactness: a file read back by the `gguf` package holds the quantizer's numbers, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import values_sha256

Values = Callable[[], NDArray[np.float32]]


def read_back(
    path: Path, expected: Mapping[str, Values], on_tensor: Callable[[], None]
) -> dict[str, str]:
    """Compare every tensor of the file with the quantizer's values; returns their SHA-256.

    Raises `ArtifactError` at the first difference, and when the file holds other tensors.
    """
    hashes: dict[str, str] = {}
    for tensor in read_tensors(path):
        values = tensor.values()
        wanted = expected[tensor.name]()
        different = int((values.view(np.uint32) != wanted.view(np.uint32)).sum())
        if different:
            raise ArtifactError(
                f"{path.name}: {tensor.name} reads back with {different} of {values.size} numbers "
                "changed",
                allowed="an artifact must hold the quantizer's numbers exactly",
                hint="the disk is failing, or tightfit has a defect: export again, and report it "
                "if it returns",
            )
        hashes[tensor.name] = values_sha256(wanted)
        on_tensor()
    assert hashes.keys() == expected.keys(), "the writer wrote what it was given"
    return hashes
