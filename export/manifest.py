"""`tightfit.json`: what went in, what came out, and what was proven of it.

One folder holds one artifact for each format, all made from the same checkpoint for the same
target. The record holds no time and no machine path, so that equal inputs give an equal manifest.

A manifest may come from a stranger: what it lists lies in its own folder, under plain names.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightfit.calib.inside import leads_outside
from tightfit.errors import ArtifactError
from tightfit.files import write_text_whole
from tightfit.records import build, load_json, shown
from tightfit.targets.formats import FORMATS

MANIFEST_NAME = "tightfit.json"
SCHEMA_VERSION = 4
KEPT = "kept"
"""`SchemeRecord.method` of what was quantized already: nothing was rounded."""
MAX_MANIFEST_BYTES = 500_000_000
"""R1's 92,000 tensors take 30 MB in each format."""
_CHUNK_BYTES = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 255
"""Characters of a path: what file systems take for one part of it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file by name, size and hash."""

    name: str
    """Relative to the manifest, with `/` between folders."""
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InputRecord:
    """The checkpoint."""

    id: str
    """Hub id, the embedded model's name, or the folder's name."""
    revision: str | None
    """Commit of the Hub repository; None for a folder."""
    model_type: str
    parameters: int
    files: tuple[FileRecord, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRecord:
    """The sequences that the statistics come from."""

    source: str
    samples: int
    tokens: int
    max_tokens: int
    seed: int
    sha256: str
    """Of the token ids."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImatrixRecord:
    """An importance matrix of llama.cpp's that guided the rounding in place of a calibration."""

    name: str
    """Of its file."""
    sha256: str
    datasets: tuple[str, ...]
    """Texts that it was computed on, as it says."""
    entries: int
    """Tensors that it has something for."""
    chunks: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SchemeRecord:
    """What was asked of the quantizer."""

    name: str
    method: str
    order: str
    """Order in which GPTQ visits the columns."""
    reason: str
    """Why the plan chose this scheme."""
    calibrate_from: str = "quantized"
    """Whose states each block was calibrated on: `quantized` or `original`."""
    budget_bytes: int | None = None
    """What `auto` could spend; None for a named scheme."""
    predicted_kl_nats: float | None = None
    """What `auto` predicted for the storage that it chose; drift measures it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TensorRecord:
    """One tensor of the artifact."""

    name: str
    """Its name in the artifact."""
    grid: str
    shape: tuple[int, ...]
    """Rows before columns."""
    sha256: str
    """Of the quantizer's dequantized float32 values."""
    relative_error: float | None
    """|| (W' - W) X ||² / || W X ||² on the calibration tokens, of experts in the mean; None where
    nothing was rounded or calibrated."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsRecord:
    """What the calibration saw of a layer's routed experts, in the order of their numbers."""

    layer: int
    tokens: tuple[int, ...]
    """That visited each."""
    own_share: tuple[float, ...]
    """Share of its own tokens in the statistics of its inputs; the rest is all of the block's."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GraphRecord:
    """How an ONNX graph is built."""

    dialect: str
    """`ort` or `standard`."""
    precision: str
    """What it computes in: `float32` or `float16`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord:
    """A TensorRT engine."""

    file: str
    """Relative to the manifest."""
    compute_capabilities: tuple[str, ...]
    """Cards that it runs on, e.g. `8.6`."""
    experimental: bool
    """Whether NVIDIA's support matrix leaves one of them out."""
    builder: str
    """Package and version."""
    quantized_tensors: int
    verbatim_tensors: int
    """Of these, how many lie in the engine byte for byte as in the ONNX file."""
    built: bool
    executed: bool
    """Whether it has run on a card; building needs none."""
    device: str | None = None
    """The card that it ran on."""
    relative_difference: float | None = None
    """Of its logits from the golden ones, on that card."""
    tokens_per_s: float | None = None
    """Decoding speed of the golden run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Logits of the shipped file in its runtime against transformers on the dequantized weights."""

    runtime: str
    tokens: int
    mean_abs_difference: float
    max_abs_difference: float
    mean_kl_nats: float
    max_kl_nats: float
    top1_agreement: float
    relative_difference: float
    """Root mean square of the difference over that of the logits, each less its position's mean."""
    typical_difference: float
    """The same of single positions, their median: a mixture's experts change at some of them."""
    relative_maximum: float
    """Largest difference over the largest logit."""
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Outcome of `tightfit verify`."""

    tensors: int
    exact_tensors: int
    parity: Parity | None
    """None when only the exactness was checked."""

    @property
    def passed(self) -> bool:
        """Every tensor exact, and parity (if measured) within its bounds."""
        return self.tensors == self.exact_tensors and (self.parity is None or self.parity.passed)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One format."""

    format: str
    """`gguf`, `onnx` or `tensorrt`."""
    scheme: SchemeRecord
    files: tuple[FileRecord, ...]
    """The one that a runtime is given comes first."""
    bits_per_weight: float
    weights_sha256: str
    """Of all dequantized weights as a reader gets them (`weights_sha256`): formats with the same
    hash hold the same numbers."""
    tensors: tuple[TensorRecord, ...]
    graph: GraphRecord | None = None
    """ONNX and TensorRT only."""
    engines: tuple[EngineRecord, ...] = ()
    """TensorRT only."""
    experts: tuple[ExpertsRecord, ...] = ()
    """Of a calibrated mixture, layer by layer."""
    verification: Verification | None = None
    drift: Mapping[str, Any] | None = None
    """The report of `tightfit drift`, as it prints with --json."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole record of a folder."""

    schema_version: int
    input: InputRecord
    target: str
    context_tokens: int
    """What the plan keeps room for."""
    command: tuple[str, ...]
    """What makes it again: the words after `tightfit`."""
    calibration: CalibrationRecord | None
    imatrix: ImatrixRecord | None
    artifacts: tuple[Artifact, ...]
    companions: tuple[FileRecord, ...]
    """Small files that all formats share: configuration, tokenizer."""
    versions: Mapping[str, str]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All files of the folder, each once: what one format lists another may list too."""
        records = (*self.companions, *(file for made in self.artifacts for file in made.files))
        return tuple(dict.fromkeys(records))

    def with_artifact(self, artifact: Artifact) -> "Manifest":
        """The manifest with the artifact of that format replaced."""
        artifacts = (artifact if artifact.format == old.format else old for old in self.artifacts)
        return dataclasses.replace(self, artifacts=tuple(artifacts))


def values_sha256(chunks: Iterable[NDArray[np.float32]]) -> str:
    """SHA-256 of a tensor's float32 values in row order, little-endian: `TensorRecord.sha256`.

    `chunks` are some rows at a time, from the top.
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(np.ascontiguousarray(chunk, dtype="<f4").data)
    return digest.hexdigest()


def weights_sha256(hashes: Mapping[str, str]) -> str:
    """One hash of a whole model, from `values_sha256` of every tensor by checkpoint name.

    SHA-256 over the lines `name hash`, sorted by name; values are in the checkpoint's row order.
    """
    lines = (f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path, folder: Path | None = None) -> FileRecord:
    """Size and SHA-256 of a file, named relative to `folder` (by default its own)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    name = path.relative_to(folder or path.parent).as_posix()
    return FileRecord(name=name, size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `tightfit.json` into the folder, replacing an older one in one step."""
    write_text_whole(folder / MANIFEST_NAME, manifest_text(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read and check `tightfit.json`.

    Raises `ArtifactError` when it is absent, damaged, or lists what is no plain path in the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no {MANIFEST_NAME}",
            allowed="a folder written by `tightfit export`",
            hint="an export that was interrupted has none yet: run the same export again",
        )
    try:
        data = load_json(path, max_bytes=MAX_MANIFEST_BYTES)
        if data["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path.name} has schema version {shown(data['schema_version'])}",
                allowed=f"this tightfit reads version {SCHEMA_VERSION}",
                hint="export again with this version",
            )
        manifest = build(Manifest, data)
        _check_consistent(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path.name} is damaged: {error}", hint="export again, or restore the file"
        ) from error
    for name in _names(manifest):
        if not is_plain_path(name):
            raise ArtifactError(
                f"{path.name} lists {shown(name)}",
                allowed="files of its own folder, by relative paths with / between folders",
                hint="do not use this artifact unless you trust its author",
            )
    return manifest


def is_plain_path(name: str) -> bool:
    """Whether a path stays below the folder that it is relative to, on any system."""
    return (
        len(name) <= _MAX_NAME
        and name.isprintable()
        and not any(mark in name for mark in "\\:")
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def stored_file(folder: Path, record: FileRecord) -> Path:
    """Where a record's file lies; raises `ArtifactError` for a link to a file outside `folder`."""
    path = folder / record.name
    if leads_outside(folder, record.name):
        raise ArtifactError(
            f"{path} is a link to {path.resolve()}, which is not in the folder",
            allowed="the files themselves, or links within the folder or the Hub's cache",
            hint="copy the file into the folder if you trust it",
        )
    return path


def _names(manifest: Manifest) -> Iterator[str]:
    yield from (record.name for record in (*manifest.input.files, *manifest.files))
    for artifact in manifest.artifacts:
        yield from (engine.file for engine in artifact.engines)


def _check_consistent(manifest: Manifest) -> None:
    """Raise `ValueError` for what an export never writes."""
    formats = [made.format for made in manifest.artifacts]
    unknown = sorted(set(formats) - FORMATS.keys())
    if unknown or len(set(formats)) != len(formats):
        raise ValueError(f"it lists the formats {shown(formats)}")
    if not formats or not all(made.files for made in manifest.artifacts):
        raise ValueError("it lists no files")
    ((name, count),) = Counter(record.name for record in manifest.files).most_common(1)
    if count > 1:
        raise ValueError(f"it lists {shown(name)} with two different contents")
    for record in (*manifest.input.files, *manifest.files):
        if record.size_bytes < 0 or not _SHA256.fullmatch(record.sha256):
            raise ValueError(f"{shown(record.name)} has no size or no SHA-256")
    for made in manifest.artifacts:
        hashes = (made.weights_sha256, *(tensor.sha256 for tensor in made.tensors))
        if not all(map(_SHA256.fullmatch, hashes)):
            raise ValueError(f"a tensor of {made.format} has no SHA-256")
        if not {engine.file for engine in made.engines} <= {record.name for record in made.files}:
            raise ValueError("it lists an engine that is none of its files")
