"""Whether an artifact's files and tensors are still those that the manifest records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import Artifact, FileRecord, hash_file, stored_file, values_sha256
from tightfit.export.onnx.readback import read_weights
from tightfit.export.safetensors.readback import read_weights as read_checkpoint
from tightfit.targets.formats import CHECKPOINT_FORMATS


def check_files(folder: Path, records: Sequence[FileRecord]) -> None:
    """Raise `ArtifactError` for the first file that is missing or changed."""
    for record in records:
        path = stored_file(folder, record)
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing",
                allowed="the folder must hold all files that its manifest lists",
                hint="export again, or download the whole artifact",
            )
        if path.stat().st_size != record.size_bytes or hash_file(path, folder) != record:
            raise ArtifactError(
                f"{path} is not the file that was exported: its SHA-256 differs",
                allowed=f"{record.size_bytes} bytes with SHA-256 {record.sha256}",
                hint="the file was changed or damaged: export or download it again",
            )


def count_exact(
    folder: Path, artifact: Artifact, on_tensor: Callable[[], None]
) -> tuple[int, tuple[str, ...]]:
    """Read every tensor back and compare it with the quantizer's numbers.

    Returns how many are bit-exact, and the names of those that are not.
    """
    recorded = {record.name: record.sha256 for record in artifact.tensors}
    differing = set(recorded)
    for name, chunks in _read(folder / artifact.files[0].name, artifact.format):
        if values_sha256(chunks) == recorded.get(name):
            differing.discard(name)
        on_tensor()
    return len(recorded) - len(differing), tuple(sorted(differing))


def _read(path: Path, format_name: str) -> Iterator[tuple[str, Iterator[NDArray[np.float32]]]]:
    """Name and values of every tensor, by a reader that is not the writer's."""
    if format_name == "gguf":
        yield from ((tensor.name, tensor.chunks()) for tensor in read_tensors(path))
    elif format_name in CHECKPOINT_FORMATS:
        yield from read_checkpoint(path.parent)
    else:
        yield from ((weight.name, weight.chunks()) for weight in read_weights(path))
