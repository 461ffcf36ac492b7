"""JUnit XML: what Jenkins, GitLab and the test reporters of GitHub show of a job.

A `testsuite` an artifact with the figures as properties, a `testcase` a finding of the gate:

* failed: `<failure type="fail">`;
* inconclusive: `<error type="inconclusive">`. Readers show a skipped case as a success or not at
  all, and a gate that could not tell must not look green. JUnit's own meaning of an error, a test
  that came to no result, is what happened;
* a figure that was not measured and that the gate left out: `<skipped>`, with the reason.

The structure is valid against the schema of Jenkins' xUnit plugin (`junit-10.xsd`), the strictest
that is in use; attributes that it does not know are left out, and so is the time of the run, which
a report does not hold.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tightfit.drift.gate import KL_FIGURE, Finding, Outcome
from tightfit.drift.report import DriftReport
from tightfit.files import write_text_whole

CLASS_PREFIX: Final = "tightfit.drift."
UNTIMED: Final = "0"
"""Seconds of a test case: readers that compute with them take a missing attribute for NaN."""

_ILLEGAL: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even as a reference (section 2.2, production 2)."""
_ELEMENT_OF: Final = {Outcome.FAIL: "failure", Outcome.INCONCLUSIVE: "error"}


def junit_xml(reports: Sequence[DriftReport]) -> str:
    """The reports as one JUnit document with its XML declaration."""
    cases = [_cases_of(report) for report in reports]
    everything = [case for own in cases for case in own]
    root = ElementTree.Element("testsuites", {"name": "tightfit drift", **_counts(everything)})
    for index, (report, own) in enumerate(zip(reports, cases, strict=True)):
        identity = {
            "name": _legal(f"{report.artifact.name} against {report.baseline.id}"),
            "id": str(index),
            "package": "tightfit.drift",
            "time": UNTIMED,
            "skipped": str(sum(case.find("skipped") is not None for case in own)),
        }
        suite = ElementTree.SubElement(root, "testsuite", {**identity, **_counts(own)})
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in _figures(report):
            ElementTree.SubElement(properties, "property", name=_legal(name), value=_legal(value))
        suite.extend(own)
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def write_junit(path: Path, reports: Sequence[DriftReport]) -> None:
    """Write the document; raises `ArtifactError` where the file cannot be written."""
    write_text_whole(path, junit_xml(reports))


def _cases_of(report: DriftReport) -> list[ElementTree.Element]:
    cases = [_case(report, finding) for finding in report.decision.findings]
    if report.tokens is None:
        unmeasured = _new_case(report, KL_FIGURE)
        ElementTree.SubElement(unmeasured, "skipped", message=_legal(report.tokens_absent))
        cases.append(unmeasured)
    return cases


def _case(report: DriftReport, finding: Finding) -> ElementTree.Element:
    case = _new_case(report, finding.figure)
    if finding.outcome is not Outcome.PASS:
        result = ElementTree.SubElement(
            case,
            _ELEMENT_OF[finding.outcome],
            type=finding.outcome.value,
            message=_legal(finding.reason),
        )
        result.text = _legal(f"{finding.reason}\nrun it again: {report.command}")
    else:
        ElementTree.SubElement(case, "system-out").text = _legal(finding.reason)
    return case


def _new_case(report: DriftReport, figure: str) -> ElementTree.Element:
    # Jenkins takes what stands before the last dot for a package: the file's suffix is no class.
    name = report.artifact.name.replace(".", "_")
    return ElementTree.Element(
        "testcase", name=_legal(figure), classname=_legal(CLASS_PREFIX + name), time=UNTIMED
    )


def _counts(cases: Sequence[ElementTree.Element]) -> dict[str, str]:
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }


def _figures(report: DriftReport) -> Iterator[tuple[str, str]]:
    """Names with units and values of everything that a dashboard would plot."""
    accuracy, tokens = report.accuracy, report.tokens
    yield "verdict", report.decision.outcome.value
    yield "artifact.format", report.artifact.format
    if report.artifact.scheme is not None:
        yield "artifact.scheme", report.artifact.scheme
    if report.artifact.bits_per_weight is not None:
        yield "artifact.bits_per_weight", f"{report.artifact.bits_per_weight:g}"
    if report.artifact.sha256 is not None:
        yield "artifact.sha256", report.artifact.sha256
    yield "baseline.id", report.baseline.id
    if report.baseline.revision is not None:
        yield "baseline.revision", report.baseline.revision
    yield "data.subset", report.data.subset
    yield "data.sha256", report.data.sha256
    yield "accuracy.n_problems", str(accuracy.n)
    yield "accuracy.samples", str(accuracy.samples)
    yield "accuracy.baseline", f"{accuracy.baseline_accuracy:g}"
    yield "accuracy.artifact", f"{accuracy.artifact_accuracy:g}"
    yield "accuracy.drop_points", f"{accuracy.drop_points:g}"
    yield "accuracy.drop_lower_points", f"{accuracy.drop_interval_points[0]:g}"
    yield "accuracy.drop_upper_points", f"{accuracy.drop_interval_points[1]:g}"
    yield "accuracy.flips_lost", str(accuracy.baseline_only)
    yield "accuracy.flips_won", str(accuracy.artifact_only)
    yield "limits.max_drop_points", f"{report.limits.max_drop_points:g}"
    yield "limits.max_kl_nats", f"{report.limits.max_kl_nats:g}"
    if tokens is not None:
        yield "tokens.n_traces", str(tokens.n_samples)
        yield "tokens.n_tokens", str(tokens.n_tokens)
        yield "tokens.kl_mean_nats", f"{tokens.kl_mean_nats:g}"
        if tokens.kl_interval_nats is not None:
            yield "tokens.kl_lower_nats", f"{tokens.kl_interval_nats[0]:g}"
            yield "tokens.kl_upper_nats", f"{tokens.kl_interval_nats[1]:g}"
        yield "tokens.kl_p99_nats", f"{tokens.kl_p99_nats:g}"
        yield "tokens.top1_agreement", f"{tokens.top1_agreement:g}"
    yield "protocol", report.protocol.name
    yield "runtime", report.runtime.label
    yield "tightfit.version", report.tightfit_version
    for name, version in sorted(report.versions.items()):
        yield f"definition.{name}", str(version)


def _legal(text: str) -> str:
    """`text` with what XML cannot hold replaced by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", text)
