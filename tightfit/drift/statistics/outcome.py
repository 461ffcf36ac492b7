"""The three answers that a measurement can give."""

from enum import StrEnum


class Outcome(StrEnum):
    """What a test or the gate says."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
