"""The report of one artifact's drift: everything that was measured, in one record.

`drift.json` holds it whole; the page, the CI outputs and `drift compare` read nothing else. The
manifest keeps it without examples.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tightfit.drift.data.sources import EMBEDDED, HUB_ID, SOURCES
from tightfit.drift.data.subset import parse_spec
from tightfit.drift.gate import GateDecision, Limits
from tightfit.drift.measures.reasoning import Reasoning
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.protocol import Protocol
from tightfit.drift.statistics.paired import PairedAccuracy
from tightfit.errors import DriftError
from tightfit.export.manifest import Artifact
from tightfit.files import write_text_whole
from tightfit.records import build, load_json
from tightfit.runtimes.results import SystemInfo

SCHEMA_VERSION: Final = 3
REPORT_NAME: Final = "drift.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactFacts:
    """What was measured."""

    name: str
    """File name, or the model's name at an endpoint."""
    format: str
    """`gguf`, `onnx`, `tensorrt`, `safetensors` or `endpoint`."""
    scheme: str | None
    """From the manifest; None for a single file or an endpoint."""
    bits_per_weight: float | None
    size_bytes: int | None
    sha256: str | None
    """Of the first file, from the manifest."""
    weights_sha256: str | None
    """Of the values of all weights, from the manifest."""

    def is_of(self, artifact: Artifact) -> bool:
        """Whether this artifact was measured, and not one that stood in its place."""
        return (self.format, self.sha256, self.weights_sha256) == (
            artifact.format,
            artifact.files[0].sha256,
            artifact.weights_sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineFacts:
    """What it was compared with."""

    id: str
    revision: str | None
    """Commit on the Hub; None for a folder."""
    content_sha256: str | None
    """Of a folder's files; None for a commit on the Hub."""
    runtime: str
    """What wrote the baseline's answers."""
    logits: str
    """What computed the baseline's log-probabilities."""
    cached: bool
    """Whether it came from a kept baseline, so that the big model did not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """The problems."""

    subset: str
    """The `--subset` as given."""
    source: str
    n_problems: int
    sha256: str
    """Equal hashes mean the same problems, visited in the same order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """A problem that one model solved and the other did not."""

    unique_id: str
    problem: str
    gold: str
    lost: bool
    """Solved by the baseline, not by the artifact; otherwise the reverse."""
    baseline_grade: str
    baseline_text: str
    artifact_grade: str
    artifact_text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """One artifact against its baseline."""

    schema_version: int
    tightfit_version: str
    versions: Mapping[str, int]
    """Of the definitions (`measures.versions`)."""
    command: str
    """How to run it again."""
    artifact: ArtifactFacts
    baseline: BaselineFacts
    data: DataFacts
    protocol: Protocol
    runtime: SystemInfo
    tokens: TokenDrift | None
    tokens_absent: str
    """Why token-level drift was not measured; empty when it was."""
    noise_floor: TokenDrift | None
    """The unquantized checkpoint in llama.cpp against itself in transformers: what the arithmetic
    of another runtime alone does."""
    accuracy: PairedAccuracy
    baseline_grades: Mapping[str, int]
    """Answers by grade."""
    artifact_grades: Mapping[str, int]
    reasoning: Reasoning
    flips: tuple[Flip, ...]
    """Examples, lost ones first."""
    limits: Limits
    decision: GateDecision


def to_fields(report: DriftReport) -> dict[str, Any]:
    """The report as plain values for JSON."""
    return dataclasses.asdict(report)


def without_examples(report: DriftReport) -> DriftReport:
    """The report as the manifest keeps it: no problems, and no paths of this machine."""
    spec = parse_spec(report.data.subset)
    own_file = spec.source not in (EMBEDDED, *SOURCES) and HUB_ID.fullmatch(spec.source) is None
    spec = dataclasses.replace(spec, source=Path(spec.source).name if own_file else spec.source)
    data = dataclasses.replace(report.data, subset=spec.text, source=spec.source)
    return dataclasses.replace(report, flips=(), command="", data=data)


def from_fields(fields: Any, where: str) -> DriftReport:
    """A report from parsed JSON; raises `DriftError` when it is damaged or of another version."""
    try:
        if fields["schema_version"] != SCHEMA_VERSION:
            raise DriftError(
                f"the drift report in {where} has schema version {fields['schema_version']}",
                allowed=f"this tightfit reads version {SCHEMA_VERSION}",
                hint="measure the drift again with this version",
            )
        return build(DriftReport, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise DriftError(
            f"the drift report in {where} is damaged: {error}",
            hint="measure the drift again, or restore the file",
        ) from error


def write_reports(path: Path, reports: Sequence[DriftReport]) -> None:
    """Write `drift.json`: a list with one entry an artifact."""
    document = {"artifacts": [to_fields(report) for report in reports]}
    write_text_whole(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_reports(path: Path) -> tuple[DriftReport, ...]:
    """Read a `drift.json`; raises `DriftError` when it is absent or damaged."""
    try:
        document = load_json(path)
        entries = document["artifacts"]
        if not isinstance(entries, list) or not entries:
            raise ValueError("it lists no artifacts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DriftError(
            f"{path} is no drift report: {error}",
            allowed=f"a {REPORT_NAME} that `tightfit drift --report` wrote, or a folder with one",
            hint="measure the drift again, or restore the file",
        ) from error
    return tuple(from_fields(entry, path.name) for entry in entries)
