"""What a publication changes in a repository.

Three rules: a file that is there with the same content is not sent again; a file that an earlier
artifact of tightfit's listed and this one does not is deleted; whatever else there is stays.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tightfit.publish.contents import PublishedFile
from tightfit.records import parse_json

_OF_THE_HUB: Final = (".gitattributes", ".gitignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file in a commit of the repository."""

    size_bytes: int
    blob_id: str
    """Git's id: SHA-1 of the header `blob SIZE NUL` and the content."""
    sha256: str | None
    """Of an LFS file's content; None for a regular file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """By path."""

    added: tuple[PublishedFile, ...]
    replaced: tuple[PublishedFile, ...]
    unchanged: tuple[PublishedFile, ...]
    deleted: tuple[str, ...]
    """Of the artifact before."""
    left: tuple[str, ...]
    """Neither this artifact's nor the one's before."""

    @property
    def sent(self) -> tuple[PublishedFile, ...]:
        """What the commit puts there."""
        return (*self.added, *self.replaced)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.sent and not self.deleted


def compare(
    files: Sequence[PublishedFile], there: Mapping[str, RemoteFile], before: Collection[str]
) -> Changes:
    """`there` is the tree of the branch, `before` what the manifest in it lists."""
    ours = {file.path for file in files}
    unchanged = {file.path for file in files if is_same(file, there.get(file.path))}
    deleted = [path for path in there if path in before and path not in ours]
    return Changes(
        added=tuple(file for file in files if file.path not in there),
        replaced=tuple(f for f in files if f.path in there and f.path not in unchanged),
        unchanged=tuple(file for file in files if file.path in unchanged),
        deleted=tuple(sorted(deleted)),
        left=tuple(sorted(there.keys() - ours - set(deleted) - set(_OF_THE_HUB))),
    )


def is_same(file: PublishedFile, remote: RemoteFile | None) -> bool:
    """Whether a remote file has this content."""
    if remote is None or remote.size_bytes != file.size_bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    return remote.blob_id == _git_blob_id(file.read())


def listed_files(manifest: bytes) -> frozenset[str]:
    """Names that a published manifest lists, of whatever version it is.

    Raises `ValueError` when it is none.
    """
    try:
        document = parse_json(manifest)
        records = [*document["companions"], *(f for a in document["artifacts"] for f in a["files"])]
        return frozenset(record["name"] for record in records)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _git_blob_id(content: bytes) -> str:
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
