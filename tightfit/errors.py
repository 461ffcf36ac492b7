"""The errors that a user can cause, each with what was given, what is allowed and what to do.

The command line prints `str(error)` and exits with `error.exit_status`; an invariant of our own
is an `assert`, never one of these.
"""

from typing import ClassVar


class TightfitError(Exception):
    """A mistake or a failure that a user can act on."""

    exit_status: ClassVar[int] = 1

    def __init__(self, problem: str, *, allowed: str = "", hint: str = "") -> None:
        """State the `problem` with the value given, what is `allowed`, and what to do (`hint`)."""
        self.problem = problem
        self.allowed = allowed
        self.hint = hint
        super().__init__("\n".join(part for part in (problem, allowed, hint) if part))


class UsageError(TightfitError):
    """An option or a name that does not exist or does not go with the others."""

    exit_status = 2


class CheckpointError(TightfitError):
    """A model folder that cannot be read as it stands."""


class CalibrationError(TightfitError):
    """Calibration text that is missing, empty or unusable."""


class QuantizationError(TightfitError):
    """Weights or statistics that no grid can hold: NaN, infinity, a width that does not divide."""


class ArtifactError(TightfitError):
    """An artifact that is damaged, incomplete, or in the way of a new one."""


class RuntimeFailureError(TightfitError):
    """A runtime (llama.cpp) refused the file or died while it ran it."""


class LogprobsUnavailableError(RuntimeFailureError):
    """A server does not give the log-probabilities of a prompt's tokens."""


class MissingPackageError(TightfitError):
    """An optional package is needed; the message names the extra."""


class DriftError(TightfitError):
    """Drift cannot be measured: wrong tokenizer, empty subset, damaged data."""


class PublishError(TightfitError):
    """An artifact that may not be published as it is, or a Hub that refuses it."""


class DoesNotFitError(TightfitError):
    """No scheme asked for fits the target; the message says what would."""

    exit_status = 4
