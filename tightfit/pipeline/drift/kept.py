"""A baseline that was kept: a folder in the cache, and the same as one file that CI restores.

    baseline.json        what it is, and the prompts          answers.jsonl   the journal of answers
    tokenizer/           the checkpoint's tokenizer           traces/*.npz    log-probabilities

The file is a zip of that folder. Whatever it lacks is computed by the model and added.
"""

import dataclasses
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tightfit.drift.measures.tokens import TokenSample
from tightfit.drift.protocol import Protocol
from tightfit.errors import DriftError
from tightfit.files import whole_file, write_text_whole
from tightfit.pipeline.drift import journal
from tightfit.pipeline.drift.identity import Identity
from tightfit.pipeline.drift.traces import tokens_key
from tightfit.records import build, parse_json

SCHEMA_VERSION: Final = 1
RECORD_NAME: Final = "baseline.json"
TRACES: Final = "traces"
TOKENIZER: Final = "tokenizer"
CACHE_VARIABLE: Final = "TIGHTFIT_CACHE"
_DAMAGED = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    KeyError,
    EOFError,
)
"""What zipfile raises for one flipped byte or another."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say: equal baselines give equal files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A text and its token ids, to recognise another tokenizer."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRecord:
    """What a kept baseline is."""

    schema_version: int
    identity: Identity
    protocol: Protocol
    """As it was carried out."""
    runtime: str
    """What writes the answers."""
    logits: str
    """What computes the log-probabilities."""
    vocab_size: int
    probes: tuple[Probe, ...]
    prompts: tuple[tuple[int, ...], ...]


def cache_folder() -> Path:
    """Where baselines and interrupted work lie: `TIGHTFIT_CACHE`, or the user's cache folder."""
    if set_by_user := os.environ.get(CACHE_VARIABLE):
        return Path(set_by_user)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tightfit"


def baseline_folder(identity: Identity) -> Path:
    """The folder of a baseline in the cache."""
    return cache_folder() / "baselines" / f"v{SCHEMA_VERSION}-{identity.key}"


def trace_path(folder: Path, sample: TokenSample) -> Path:
    """Where a trace lies: its name is its content, so that it never passes for another's."""
    return folder / TRACES / f"{tokens_key(sample)}.npz"


def write_record(folder: Path, record: BaselineRecord) -> None:
    """Write `baseline.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_whole(folder / RECORD_NAME, json.dumps(dataclasses.asdict(record)) + "\n")


def read_record(folder: Path) -> BaselineRecord | None:
    """The record of a folder; None when there is none. Raises `DriftError` when it is damaged."""
    path = folder / RECORD_NAME
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def read_packed_record(path: Path) -> BaselineRecord:
    """The record within a baseline file, all of whose members are checked.

    Raises `DriftError` when the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
            data = archive.read(RECORD_NAME)
    except _DAMAGED as error:
        raise DriftError(
            f"{path} is no kept baseline: {error}",
            allowed="a file that `tightfit drift baseline` or --baseline-cache wrote",
            hint="restore it, or delete it to have the baseline computed again",
        ) from error
    return _parse(data, f"{path}: {RECORD_NAME}")


def unpack(path: Path, folder: Path) -> None:
    """Add to `folder` what the baseline file holds and the folder lacks.

    Raises `DriftError` for a damaged journal, or a member that would lie elsewhere.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise DriftError(
                    f"{path} is no kept baseline: {name!r} would lie outside its folder",
                    hint="delete it to have the baseline computed again",
                )
            if name == journal.NAME:
                lines = archive.read(name).splitlines()
                journal.Journal(target).merge(lines, f"{path}: {name}")
            elif not name.endswith("/") and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(target) as part:
                    part.write_bytes(archive.read(name))


def is_packed(folder: Path, path: Path) -> bool:
    """Whether the baseline file holds just what the folder does."""
    if not path.exists():
        return False
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: info.CRC for info in archive.infolist() if not info.is_dir()}
    return held == {name: zlib.crc32(_content(file)) for name, file in _members(folder)}


def pack(folder: Path, path: Path) -> None:
    """Write the folder as one file, replacing an older one in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in _members(folder):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, _content(file))


def _members(folder: Path) -> list[tuple[str, Path]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.relative_to(folder).as_posix(), file) for file in files]


def _content(file: Path) -> bytes:
    """A member's bytes; answers in the order of the problems, not as they came."""
    return journal.Journal(file).sorted_bytes() if file.name == journal.NAME else file.read_bytes()


def _parse(data: bytes, where: str) -> BaselineRecord:
    try:
        fields = parse_json(data)
        if fields["schema_version"] != SCHEMA_VERSION:
            raise DriftError(
                f"{where} has schema version {fields['schema_version']}",
                allowed=f"this tightfit reads version {SCHEMA_VERSION}",
                hint="delete it to have the baseline computed again",
            )
        return build(BaselineRecord, fields)
    except (ValueError, KeyError, TypeError) as error:
        raise DriftError(
            f"{where} is damaged: {error}",
            hint="restore it, or delete it to have the baseline computed again",
        ) from error
