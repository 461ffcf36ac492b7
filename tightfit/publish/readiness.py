"""Whether an artifact may be published.

Its files are those of the manifest, it was verified, and what it lost was measured and is within
the limits. A file that differs from the manifest is never published, nor a report that cannot be
read. Everything else may be, with `--allow-unverified`, and then stands in the model card.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tightfit.drift.gate import Outcome
from tightfit.drift.report import DriftReport, from_fields
from tightfit.errors import DriftError, PublishError
from tightfit.export.manifest import (
    KEPT,
    Artifact,
    FileRecord,
    InputRecord,
    Manifest,
    hash_file,
)
from tightfit.publish.contents import check_path
from tightfit.reporter import Reporter, SilentReporter


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """What speaks against publishing and was allowed."""

    problems: tuple[str, ...]
    """One a line, with the format that it is of."""


def check_ready(
    folder: Path,
    manifest: Manifest,
    *,
    allow_unverified: bool = False,
    reporter: Reporter | None = None,
) -> Readiness:
    """Hash every file, and look at what was verified and measured.

    Raises `PublishError` with all problems at once; with `allow_unverified` only for files that are
    not the manifest's and reports that cannot be read.
    """
    damaged = list(_changed_files(folder, manifest.files, reporter or SilentReporter()))
    unproven: list[str] = []
    for artifact in manifest.artifacts:
        try:
            problems = [*_verification(artifact), *_drift(artifact, manifest.input)]
        except DriftError as error:
            damaged.append(f"{artifact.format}: {error.problem}")
        else:
            unproven += [f"{artifact.format}: {problem}" for problem in problems]
    if damaged:
        raise PublishError(
            _listing(folder, [*damaged, *unproven]),
            allowed="the files that the manifest lists, unchanged, and reports that can be read; "
            "--allow-unverified does not change that",
            hint="restore the files, or export, verify and measure again",
        )
    if unproven and not allow_unverified:
        raise PublishError(
            _listing(folder, unproven),
            allowed="every artifact verified, and its drift measured and within the limits",
            hint=f"tightfit verify {folder}; tightfit drift {folder} --baseline "
            f"{manifest.input.id}; or --allow-unverified, which the model card then says",
        )
    return Readiness(problems=tuple(unproven))


def _listing(folder: Path, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{folder} is not ready to be published: {count}", *problems])


def _changed_files(
    folder: Path, records: tuple[FileRecord, ...], reporter: Reporter
) -> Iterator[str]:
    with reporter.progress(len(records), "files") as progress:
        for record in records:
            path = check_path(folder, record.name)
            if not path.is_file():
                yield f"{record.name} is missing"
            elif path.stat().st_size != record.size_bytes:
                yield (
                    f"{record.name} is not the file that was exported: {path.stat().st_size} bytes "
                    f"in place of {record.size_bytes}"
                )
            elif hash_file(path, folder) != record:
                yield f"{record.name} is not the file that was exported: its SHA-256 differs"
            progress.advance()


def _verification(artifact: Artifact) -> Iterator[str]:
    found = artifact.verification
    if found is None:
        yield "it was not verified"
        return
    if found.tensors != len(artifact.tensors):
        yield (
            f"the verification is stale: of {found.tensors} tensors, and it has "
            f"{len(artifact.tensors)}"
        )
    if found.exact_tensors != found.tensors:
        yield (
            "the verification failed: "
            f"{found.exact_tensors} of {found.tensors} tensors are the quantizer's numbers"
        )
    if found.parity is not None and not found.parity.passed:
        yield (
            f"the verification failed: logits of {found.parity.runtime} are outside the bounds "
            f"(relative difference {found.parity.relative_difference:.1e})"
        )


def _drift(artifact: Artifact, original: InputRecord) -> Iterator[str]:
    """Raises `DriftError` for a damaged report."""
    if artifact.drift is None:
        yield "its drift was not measured"
        return
    report = from_fields(artifact.drift, "the manifest")
    if not report.artifact.is_of(artifact):
        yield f"the drift is stale: it was measured on another file ({_measured(report)})"
        return
    baseline = report.baseline
    is_kept = artifact.scheme.method == KEPT  # made of a quantized checkpoint: any float one counts
    if not is_kept and (baseline.id, baseline.revision) != (original.id, original.revision):
        yield (
            f"the drift was measured against {_model(baseline.id, baseline.revision)}, and it was "
            f"made from {_model(original.id, original.revision)}"
        )
    outcome = report.decision.outcome
    if outcome is not Outcome.PASS:
        word = "failed" if outcome is Outcome.FAIL else "is inconclusive"
        reasons = [
            finding.reason
            for finding in report.decision.findings
            if finding.outcome is not Outcome.PASS
        ]
        yield f"the drift gate {word}: {'; '.join(reasons)}"


def _model(name: str, revision: str | None) -> str:
    return f"{name} at revision {revision}" if revision else name


def _measured(report: DriftReport) -> str:
    sha256 = report.artifact.sha256
    return f"{report.artifact.name}, " + (f"SHA-256 {sha256[:16]}" if sha256 else "no SHA-256")
