"""A folder like an export's that may be published: small files, a manifest that lists them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from support import card_manifests, drift_reports
from tightfit.export.manifest import Artifact, FileRecord, Manifest, hash_file, write_manifest

REPO = "someone/r1-small-for-me"


def publishable(
    folder: Path, kinds: Sequence[str] = ("gguf",), *, file_bytes: int = 3000, seed: str = ""
) -> Manifest:
    """Write the files of these kinds and their manifest, verified and measured."""
    folder.mkdir(exist_ok=True)
    # MATH-500, which needs no entry of its own beside the card.
    manifest = card_manifests.manifest(folder, kinds, report=card_manifests.math_report())
    artifacts = tuple(_real(folder, made, file_bytes, seed) for made in manifest.artifacts)
    manifest = dataclasses.replace(manifest, artifacts=artifacts)
    write_manifest(folder, manifest)
    return manifest


def _real(folder: Path, artifact: Artifact, file_bytes: int, seed: str) -> Artifact:
    files = tuple(_file(folder, record.name, file_bytes, seed) for record in artifact.files)
    found = artifact.verification
    assert found is not None
    n_tensors = len(artifact.tensors)
    facts = dataclasses.replace(
        drift_reports.report().artifact,
        format=artifact.format,
        name=files[0].name,
        sha256=files[0].sha256,
        weights_sha256=artifact.weights_sha256,
        size_bytes=sum(file.size_bytes for file in files),
    )
    drift = {**(artifact.drift or {}), "artifact": dataclasses.asdict(facts)}
    return dataclasses.replace(
        artifact,
        files=files,
        drift=drift,
        verification=dataclasses.replace(found, tensors=n_tensors, exact_tensors=n_tensors),
    )


def _file(folder: Path, name: str, n_bytes: int, seed: str) -> FileRecord:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    block = hashlib.sha256(f"{seed}{name}".encode()).digest()
    # A zero byte, as any file of weights has in its head: no text.
    path.write_bytes((b"\0" + block * (n_bytes // len(block) + 1))[:n_bytes])
    return hash_file(path, folder)
