"""How a long job tells where it is, without knowing who listens.

The command line shows it on stderr (`tightfit.cli.output`); `SilentReporter` is for library use.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A bar in motion."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more of the total as done."""


class Reporter(Protocol):
    """What a job says while it runs."""

    def stage(self, name: str) -> None:
        """A new stage begins, e.g. `Calibrating and quantizing`."""

    def progress(self, total: int, description: str, /) -> AbstractContextManager[Progress]:
        """A bar of `total` steps; steps that are not advanced by the end stay undone."""

    def info(self, text: str) -> None:
        """A fact worth a line."""

    def warning(self, text: str) -> None:
        """Something that was asked for and not done, or that needs the user's eye."""


class _SilentProgress:
    def advance(self, steps: int = 1) -> None:
        """Say nothing."""


class SilentReporter:
    """A reporter that says nothing."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def progress(self, _total: int, _description: str, /) -> AbstractContextManager[Progress]:
        """Count nothing."""
        return nullcontext(_SilentProgress())

    def info(self, text: str) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing."""
