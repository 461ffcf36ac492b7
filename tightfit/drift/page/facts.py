"""What was run, in pairs of a name and a value."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from tightfit.drift.page import numerals
from tightfit.drift.page.table import artifact_names, shared
from tightfit.drift.protocol import Protocol
from tightfit.drift.report import DriftReport
from tightfit.runtimes.results import SystemInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A value that the reader may want to copy."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FactGroup:
    """Facts under one heading."""

    title: str
    facts: tuple[Fact, ...]


def fact_groups(reports: Sequence[DriftReport]) -> tuple[FactGroup, ...]:
    """Everything that decides the figures; what reports share is told once."""
    first = reports[0]
    return (
        *(
            _group(name, _artifact(report))
            for name, report in zip(artifact_names(reports), reports, strict=True)
        ),
        _group("Baseline", _baseline(first)),
        _group(
            "Problems",
            {
                "Subset": first.data.subset,
                "Source": first.data.source,
                "Number": numerals.count(first.data.n_problems),
                "SHA-256": first.data.sha256,
            },
        ),
        _group("Protocol", _protocol(first.protocol)),
        *(
            _group(each.name, _runtime(each.value))
            for each in shared(reports, "Runtime", lambda report: report.runtime)
        ),
        _group(
            "Definitions",
            {
                "tightfit": first.tightfit_version,
                **{f"{name}, version": str(version) for name, version in first.versions.items()},
            },
        ),
    )


def _group(title: str, facts: dict[str, str]) -> FactGroup:
    return FactGroup(
        title=title, facts=tuple(Fact(name=name, value=value) for name, value in facts.items())
    )


def _artifact(report: DriftReport) -> dict[str, str]:
    artifact = report.artifact
    facts = {"Format": artifact.format}
    if artifact.scheme is not None:
        facts["Scheme"] = artifact.scheme
    if artifact.size_bytes is not None:
        facts["Size"] = f"{numerals.count(artifact.size_bytes)} bytes"
    if artifact.sha256 is not None:
        facts["SHA-256"] = artifact.sha256
    return facts


def _baseline(report: DriftReport) -> dict[str, str]:
    baseline = report.baseline
    return {
        "Model": baseline.id,
        "Revision": baseline.revision or "not known",
        "Answers by": baseline.runtime,
        "Log-probabilities by": baseline.logits,
        "Kept from an earlier run": "yes" if baseline.cached else "no",
    }


def _protocol(protocol: Protocol) -> dict[str, str]:
    return {
        field.name.replace("_", " ").capitalize(): _written(getattr(protocol, field.name))
        for field in fields(Protocol)
    }


def _written(value: object) -> str:
    """Text with white space is quoted, so that a line break is seen."""
    if isinstance(value, str) and (not value or value != value.strip()):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _runtime(runtime: SystemInfo) -> dict[str, str]:
    return {
        "Runtime": runtime.label,
        "Device": runtime.device,
        "Threads": str(runtime.threads),
        "Context": f"{numerals.count(runtime.context_tokens)} tokens",
        "KV cache": f"{runtime.kv_type}, {numerals.size(runtime.kv_bytes)}",
        **{name.replace("_", " "): str(value) for name, value in runtime.facts.items()},
    }
