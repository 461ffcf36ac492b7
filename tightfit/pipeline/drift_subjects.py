"""Which artifacts `tightfit drift` measures, and where their reports are kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightfit.calib.checkpoint import Checkpoint
from tightfit.errors import ArtifactError, UsageError
from tightfit.export.manifest import Artifact, Manifest, read_manifest, write_manifest
from tightfit.reporter import Reporter
from tightfit.runtimes.base import Runtime
from tightfit.runtimes.opening import format_of, open_artifact, open_file, unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An artifact to be measured."""

    format: str
    path: Path
    """The file that its runtime is given."""
    folder: Path | None = None
    """Of the export; None for a single file."""
    artifact: Artifact | None = None
    """What the folder's manifest says of it."""

    def open(self, *, context_tokens: int, provider: str) -> Runtime:
        """Run it."""
        if self.folder is None or self.artifact is None:
            return open_file(self.path, context_tokens=context_tokens, provider=provider)
        return open_artifact(
            self.folder, self.artifact, context_tokens=context_tokens, provider=provider
        )


def find_subjects(path: Path, formats: Sequence[str], reporter: Reporter) -> tuple[Subject, ...]:
    """What a folder or a file gives to measure.

    Of a folder, the named formats, each of which must run here; none named: all that run here,
    with a warning for every other one. Raises `ArtifactError`, `UsageError`, and when nothing runs
    what the first format lacks.
    """
    subjects = _all_subjects(path)
    held = [subject.format for subject in subjects]
    absent = [name for name in formats if name not in held]
    if absent:
        raise UsageError(
            f"{path} holds no artifact of the format {absent[0]}",
            allowed=f"it holds: {', '.join(held)}",
            hint="leave --format out to measure all that run here",
        )
    wanted = [subject for subject in subjects if subject.format in (formats or held)]
    reasons = [unavailable(subject.format) for subject in wanted]
    for subject, reason in zip(wanted, reasons, strict=True):
        if reason is not None and (formats or all(reasons)):
            raise reason
        if reason is not None:
            reporter.warning(f"{subject.format} is not measured: {reason.problem}")
    return tuple(subject for subject, reason in zip(wanted, reasons, strict=True) if reason is None)


def _all_subjects(path: Path) -> tuple[Subject, ...]:
    if path.is_dir():
        return tuple(
            Subject(
                format=artifact.format,
                path=path / artifact.files[0].name,
                folder=path,
                artifact=artifact,
            )
            for artifact in read_manifest(path).artifacts
        )
    if not path.is_file():
        raise ArtifactError(
            f"there is no artifact {str(path)!r}",
            allowed="a folder written by `tightfit export`, or a .gguf or .onnx file",
        )
    return (Subject(format=format_of(path), path=path),)


def warn_of_another_baseline(path: Path, checkpoint: Checkpoint, reporter: Reporter) -> None:
    """Say so when the baseline is not the checkpoint that the artifacts were made from."""
    if not path.is_dir():
        return
    made_from, given = read_manifest(path).input, checkpoint.source
    if (made_from.id, made_from.revision) != (given.id, given.revision):
        reporter.warning(
            f"the artifact was made from {made_from.id} (revision {made_from.revision}), the "
            f"baseline is {given.id} (revision {given.revision}): the drift includes what differs "
            "between the two"
        )


def record_reports(
    path: Path, reports: Mapping[str, Mapping[str, Any]], reporter: Reporter
) -> None:
    """Put reports, by format, into the manifest, where there is one."""
    if not path.is_dir():
        return
    try:
        write_manifest(path, _with_reports(read_manifest(path), reports))
    except ArtifactError as error:  # hours of measuring must not be lost with it
        reporter.warning(f"the drift was not recorded: {error.problem}")


def _with_reports(manifest: Manifest, reports: Mapping[str, Mapping[str, Any]]) -> Manifest:
    for artifact in manifest.artifacts:
        if artifact.format in reports:
            measured = dataclasses.replace(artifact, drift=reports[artifact.format])
            manifest = manifest.with_artifact(measured)
    return manifest
