"""The exact list of what is published: the manifest, the files that it lists, and generated texts.

Nothing else of the folder is published: it may hold anything. Links are refused, because a link
says nothing of what lies at its end.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

from tightfit.errors import PublishError
from tightfit.export.manifest import MANIFEST_NAME, Manifest, is_plain_path

CARD_NAME: Final = "README.md"
_TAKEN: Final = (".git", ".cache", ".gitattributes", ".gitignore")
"""The first two the Hub refuses, the others say how it stores files."""
_LFS_SUFFIXES: Final = (".safetensors", ".onnx", ".model", ".bin")
"""Of the files that tightfit writes, those in the .gitattributes of a new repository."""
_MAX_REGULAR_BYTES: Final = 10 << 20
"""What the Hub takes at most without LFS."""
_TEXT_BYTES: Final = 512
"""What the Hub is shown of a file to tell text from anything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """A file as it will be in the repository."""

    path: str
    """In the repository, with `/` between folders."""
    source: Path | bytes
    size_bytes: int
    sha256: str

    @property
    def storage(self) -> str:
        """`LFS` or `regular`, as the Hub stores it in a repository with its usual .gitattributes.

        The Hub has the last word when the file is sent.
        """
        is_lfs = self.path.endswith(_LFS_SUFFIXES) or self.size_bytes > _MAX_REGULAR_BYTES
        return "LFS" if is_lfs or b"\0" in self._sample() else "regular"

    def read(self) -> bytes:
        """The content."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def _sample(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[:_TEXT_BYTES]
        with self.source.open("rb") as file:
            return file.read(_TEXT_BYTES)


def list_contents(
    folder: Path, manifest: Manifest, texts: Mapping[str, str]
) -> tuple[PublishedFile, ...]:
    """All files by path: `texts` are the generated ones by path, the card among them.

    The hashes are the manifest's: `check_ready` has compared them. Raises `PublishError` for a
    link, a path that leads out of the folder, and a name that two files have.
    """
    files = [_generated(MANIFEST_NAME, check_path(folder, MANIFEST_NAME).read_bytes())]
    files += [_generated(path, text.encode()) for path, text in texts.items()]
    files += [
        PublishedFile(
            path=record.name,
            source=check_path(folder, record.name),
            size_bytes=record.size_bytes,
            sha256=record.sha256,
        )
        for record in manifest.files
    ]
    files.sort(key=lambda file: file.path)
    for first, second in pairwise(files):
        if first.path == second.path:
            raise PublishError(
                f"two files would be {first.path}: one is listed in {MANIFEST_NAME}, the other "
                "is written for the Hub",
                hint="export again with this version",
            )
    return tuple(files)


def check_path(folder: Path, name: str) -> Path:
    """Where a file of the artifact lies; raises `PublishError` unless it lies there itself."""
    parts = PurePosixPath(name).parts
    if not is_plain_path(name) or any(part in _TAKEN for part in parts):
        raise PublishError(
            f"{MANIFEST_NAME} lists {name!r}, which cannot be published",
            allowed=f"files in the folder, by plain relative paths; not {', '.join(_TAKEN)}",
            hint="export again",
        )
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise PublishError(
                f"{path} is a link to {path.readlink()}",
                allowed="the files themselves",
                hint=f"copy the folder with what its links lead to: cp -rL {folder} FOLDER",
            )
    return path


def _generated(path: str, content: bytes) -> PublishedFile:
    return PublishedFile(
        path=path,
        source=content,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
