"""JUnit XML against the rules of Jenkins' schema and the reader `junitparser`."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest
from support.drift_reports import report

from tightfit.drift.gate import Finding, GateDecision, Outcome
from tightfit.drift.outputs.junit import junit_xml, write_junit
from tightfit.errors import ArtifactError

# Jenkins' xUnit plugin, junit-10.xsd: (required attributes, others, children) of what we write.
RULES = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {
            "group",
            "time",
            "skipped",
            "timestamp",
            "hostname",
            "id",
            "package",
            "file",
            "log",
            "url",
        },
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def assert_valid(element):
    required, optional, children = RULES[element.tag]
    assert required <= element.attrib.keys() <= required | optional, element.tag
    for child in element:
        assert child.tag in children, f"{child.tag} in {element.tag}"
        assert_valid(child)


def parsed(reports, tmp_path):
    junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed")
    path = tmp_path / "junit.xml"
    write_junit(path, reports)
    return list(junitparser.JUnitXml.fromfile(str(path)))


def test_structure_follows_the_schema() -> None:
    reports = [report(outcome) for outcome in Outcome]
    assert_valid(ElementTree.fromstring(junit_xml(reports).encode()))


def test_a_foreign_reader_sees_one_result_a_finding(tmp_path) -> None:
    passed, failed, open_ = parsed(
        [report(Outcome.PASS), report(Outcome.FAIL), report(Outcome.INCONCLUSIVE)], tmp_path
    )
    assert [(suite.tests, suite.failures, suite.errors) for suite in (passed, failed, open_)] == [
        (2, 0, 0),
        (2, 1, 0),
        (2, 0, 1),
    ]
    assert [case.is_passed for case in passed] == [True, True]
    (failure,) = next(iter(failed)).result
    assert (failure.type, failure.message) == (
        "fail",
        "accuracy drop +3.12 points [-3.90, +11.20] on 64 problems, limit 2",
    )
    assert failure.text.endswith(report().command)


def test_inconclusive_is_an_error_and_not_green(tmp_path) -> None:
    (suite,) = parsed([report(Outcome.INCONCLUSIVE)], tmp_path)
    case = next(iter(suite))
    (result,) = case.result
    assert (type(result).__name__, result.type) == ("Error", "inconclusive")
    assert not case.is_passed
    assert not case.is_skipped


def test_figures_are_properties(tmp_path) -> None:
    (suite,) = parsed([report(kl=0.0125)], tmp_path)
    figures = {entry.name: entry.value for entry in suite.properties()}
    assert figures["verdict"] == "pass"
    assert float(figures["tokens.kl_mean_nats"]) == 0.0125
    assert float(figures["tokens.top1_agreement"]) == 0.985
    assert float(figures["accuracy.artifact"]) == pytest.approx(58 / 64, rel=1e-5)
    assert figures["accuracy.n_problems"] == "64"
    assert float(figures["artifact.bits_per_weight"]) == 4.85
    assert figures["data.sha256"] == "cd" * 32
    assert {name for name in figures if name.startswith("definition.")} == {
        f"definition.{name}" for name in report().versions
    }


def test_unknown_figures_are_left_out(tmp_path) -> None:
    endpoint = report(bits_per_weight=None)
    endpoint = dataclasses.replace(
        endpoint,
        artifact=dataclasses.replace(endpoint.artifact, scheme=None, sha256=None),
        baseline=dataclasses.replace(endpoint.baseline, revision=None),
    )
    (suite,) = parsed([endpoint], tmp_path)
    names = {entry.name for entry in suite.properties()}
    assert not names & {
        "artifact.bits_per_weight",
        "artifact.scheme",
        "artifact.sha256",
        "baseline.revision",
    }


def test_an_unmeasured_kl_is_a_skipped_case_with_the_reason(tmp_path) -> None:
    measured = report()
    unmeasured = dataclasses.replace(
        measured,
        tokens=None,
        tokens_absent="the endpoint gives no log-probabilities",
        decision=GateDecision(outcome=Outcome.PASS, findings=(measured.decision.findings[0],)),
    )
    (suite,) = parsed([unmeasured], tmp_path)
    accuracy, kl = suite
    assert accuracy.is_passed
    assert kl.is_skipped
    assert kl.result[0].message == "the endpoint gives no log-probabilities"
    assert (suite.tests, suite.skipped) == (2, 1)
    assert_valid(ElementTree.fromstring(junit_xml([unmeasured]).encode()))


NASTY = "a\x00b\x1b[31m\ud800\ufffe<&>\"' ]]> \U0001f600 Größe"


def test_illegal_characters_are_replaced_and_others_kept(tmp_path) -> None:
    decision = GateDecision(
        outcome=Outcome.FAIL,
        findings=(Finding(figure="mean KL", outcome=Outcome.FAIL, reason=NASTY + "\nline two"),),
    )
    nasty = dataclasses.replace(report(name=NASTY), decision=decision, command=NASTY)
    (suite,) = parsed([nasty], tmp_path)
    shown = "a�b�[31m��<&>\"' ]]> \U0001f600 Größe"
    assert suite.name.startswith(shown + " against ")
    (failure,) = next(iter(suite)).result
    assert failure.message == shown + "\nline two"


def test_dots_of_the_file_name_do_not_become_packages(tmp_path) -> None:
    (suite,) = parsed([report(name="tiny-r1-Q4_K_M.gguf")], tmp_path)
    assert next(iter(suite)).classname == "tightfit.drift.tiny-r1-Q4_K_M_gguf"


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(ArtifactError, match=r"junit\.xml"):
        write_junit(tmp_path / "absent" / "junit.xml", [report()])
