"""Only like is compared with like: same problems, protocol, definitions and baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Final

from tightfit.drift.protocol import Protocol
from tightfit.drift.report import DriftReport
from tightfit.errors import DriftError

HASH_CHARS: Final = 12
"""Of a hash in a message: enough to tell two apart."""


def comparable(reports: Sequence[DriftReport]) -> None:
    """Raise `DriftError` that names what differs between the first report and another."""
    for other in reports[1:]:
        differences = [difference(reports[0], other) for difference in _DIFFERENCES]
        found = [sentence for sentence in differences if sentence]
        if found:
            raise DriftError(
                f"{reports[0].artifact.name} and {other.artifact.name} were not measured alike: "
                + "; ".join(found),
                allowed="reports of the same problems, protocol, definitions and baseline",
                hint="measure them again with the same --baseline, --subset and sampling options "
                "and one version of tightfit",
            )


def _data(first: DriftReport, other: DriftReport) -> str:
    if first.data.sha256 == other.data.sha256:
        return ""
    return (
        f"other problems ({first.data.subset}, hash {first.data.sha256[:HASH_CHARS]}, against "
        f"{other.data.subset}, hash {other.data.sha256[:HASH_CHARS]})"
    )


def _protocol(first: DriftReport, other: DriftReport) -> str:
    return _differing("protocol", _protocol_fields(first), _protocol_fields(other))


def _versions(first: DriftReport, other: DriftReport) -> str:
    return _differing("version of the definitions", first.versions, other.versions)


def _baseline(first: DriftReport, other: DriftReport) -> str:
    return _differing("baseline", _baseline_fields(first), _baseline_fields(other))


_DIFFERENCES: Final[tuple[Callable[[DriftReport, DriftReport], str], ...]] = (
    _data,
    _protocol,
    _versions,
    _baseline,
)


def _protocol_fields(report: DriftReport) -> Mapping[str, object]:
    return {field.name: getattr(report.protocol, field.name) for field in fields(Protocol)}


def _baseline_fields(report: DriftReport) -> Mapping[str, object]:
    baseline = report.baseline
    return {
        "id": baseline.id,
        "revision": baseline.revision,
        "content": baseline.content_sha256,
    }


def _differing(what: str, first: Mapping[str, object], other: Mapping[str, object]) -> str:
    changed = [
        f"{name} {first.get(name)!r} against {other.get(name)!r}"
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    return f"another {what} ({', '.join(changed)})" if changed else ""
