"""Which baseline a kept one is: the model, the protocol, the problems and the definitions."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightfit.calib.checkpoint import Checkpoint
from tightfit.drift.measures.versions import VERSIONS
from tightfit.drift.protocol import Protocol
from tightfit.export.manifest import hash_file
from tightfit.pipeline.drift.traces import MAX_TRACE_TOKENS, MAX_TRACES


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Everything that decides what the baseline answers."""

    model: str
    revision: str | None
    """Commit on the Hub; None for a folder."""
    content_sha256: str | None
    """Of a folder's files; None for a commit on the Hub, which says as much."""
    protocol: Protocol
    """As asked for, before the model's context limits it."""
    problems_sha256: str
    """Of the problems in the order in which they are visited."""
    versions: Mapping[str, int]

    @property
    def key(self) -> str:
        """A short name for it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def current_versions() -> Mapping[str, int]:
    """Versions of the definitions and sizes that a kept baseline depends on."""
    return {**VERSIONS, "traces": MAX_TRACES, "trace_tokens": MAX_TRACE_TOKENS}


def content_sha256(checkpoint: Checkpoint) -> str | None:
    """Hash of a local folder's files; None where the revision names the content."""
    if checkpoint.source.revision is not None:
        return None
    return files_sha256(checkpoint.files)


def files_sha256(files: tuple[Path, ...]) -> str:
    """One hash of several files, by name and content."""
    records: list[Any] = [dataclasses.asdict(hash_file(path)) for path in files]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
