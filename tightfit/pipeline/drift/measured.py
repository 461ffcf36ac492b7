"""Reports of earlier measurements."""

from pathlib import Path

from tightfit.drift.report import REPORT_NAME, DriftReport, from_fields, read_reports
from tightfit.errors import ArtifactError
from tightfit.export.manifest import MANIFEST_NAME, read_manifest


def read_measured(path: Path) -> tuple[DriftReport, ...]:
    """Reports of a `drift.json`, of a folder with one, or of an exported folder's manifest.

    Raises `ArtifactError` and `DriftError`.
    """
    if path.is_file():
        return read_reports(path)
    if (path / REPORT_NAME).is_file():
        return read_reports(path / REPORT_NAME)
    if not (path / MANIFEST_NAME).is_file():
        raise ArtifactError(
            f"{path} holds no measured drift",
            allowed=f"a {REPORT_NAME}, a folder with one, or a folder that `tightfit export` wrote",
            hint="measure it: tightfit drift ARTIFACT --baseline MODEL --report DIR",
        )
    reports = tuple(
        from_fields(made.drift, f"{path.name}/{MANIFEST_NAME}")
        for made in read_manifest(path).artifacts
        if made.drift is not None
    )
    if not reports:
        raise ArtifactError(
            f"the drift of {path} was not measured yet",
            hint=f"measure it: tightfit drift {path} --baseline MODEL",
        )
    return reports
