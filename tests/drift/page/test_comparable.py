import dataclasses

import pytest
from support.drift_reports import report

from tightfit.drift.page.comparable import comparable
from tightfit.drift.report import DriftReport
from tightfit.errors import DriftError

OTHER = "other.gguf"


def other(**changed) -> DriftReport:
    return dataclasses.replace(report(name=OTHER), **changed)


def test_reports_of_the_same_run_are_comparable():
    comparable([])
    comparable([report()])
    comparable([report(), report(name=OTHER, kl=0.2), report(name="third.gguf")])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (other(data=dataclasses.replace(report().data, sha256="ef" * 32)), "hash efefefefefef"),
        (
            other(protocol=dataclasses.replace(report().protocol, max_tokens=7)),
            "max_tokens 32768 against 7",
        ),
        (other(versions={**report().versions, "grading": 99}), "grading 1 against 99"),
        (
            other(baseline=dataclasses.replace(report().baseline, id="another/model")),
            "against 'another/model'",
        ),
        (
            other(baseline=dataclasses.replace(report().baseline, revision=None)),
            "revision '916b56a44061fd5cd7d6a8fb632557ed4f724f60' against None",
        ),
    ],
)
def test_what_differs_is_named(changed, named):
    with pytest.raises(DriftError) as caught:
        comparable([report(), report(name="same.gguf"), changed])
    assert named in caught.value.problem
    assert OTHER in caught.value.problem
    assert caught.value.allowed
    assert caught.value.hint


def test_everything_that_differs_is_named():
    data = dataclasses.replace(report().data, sha256="ef" * 32)
    baseline = dataclasses.replace(report().baseline, id="another/model")
    with pytest.raises(DriftError, match=r"other problems.*another baseline"):
        comparable([report(), other(data=data, baseline=baseline)])
