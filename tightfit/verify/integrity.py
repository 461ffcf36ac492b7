"""Whether an artifact's files and tensors are still those that the manifest records."""

from collections.abc import Callable
from pathlib import Path

from tightfit.errors import ArtifactError
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import Manifest, hash_file, values_sha256


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `ArtifactError` for the first file that is missing or changed."""
    for record in manifest.files:
        path = folder / record.name
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing",
                allowed="the folder must hold all files that its manifest lists",
                hint="export again, or download the whole artifact",
            )
        if path.stat().st_size != record.size_bytes or hash_file(path) != record:
            raise ArtifactError(
                f"{path} is not the file that was exported: its SHA-256 differs",
                allowed=f"{record.size_bytes} bytes with SHA-256 {record.sha256}",
                hint="the file was changed or damaged: export or download it again",
            )


def count_exact(
    folder: Path, manifest: Manifest, on_tensor: Callable[[], None]
) -> tuple[int, tuple[str, ...]]:
    """Read every tensor back with the `gguf` package and compare it with the quantizer's numbers.

    Returns how many are bit-exact, and the names of those that are not.
    """
    recorded = {record.name: record.sha256 for record in manifest.tensors}
    differing = set(recorded)
    for tensor in read_tensors(folder / manifest.files[0].name):
        if values_sha256(tensor.values()) == recorded.get(tensor.name):
            differing.discard(tensor.name)
        on_tensor()
    return len(recorded) - len(differing), tuple(sorted(differing))
