"""From an exception to a sentence, a hint and an exit status: one table."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from tightfit.errors import TightfitError

HANDLED = 1
USAGE = 2
# typer carries its own copy of click since 0.27 and used the real one before: take the classes from
# what it exports. BadParameter < UsageError < ClickException in both.
_ClickError = typer.BadParameter.__mro__[2]

INTERRUPTED = 130
"""What shells report for a process that SIGINT ended."""
TERMINATED = 143
"""The same for SIGTERM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What the user is told."""

    kind: str
    problem: str
    allowed: str = ""
    hint: str = ""
    exit_status: int = HANDLED

    @property
    def lines(self) -> list[str]:
        """The lines for stderr."""
        lines = [f"error: {self.problem}"]
        lines += [f"       {self.allowed}"] if self.allowed else []
        return lines + ([f"hint:  {self.hint}"] if self.hint else [])

    @property
    def document(self) -> Mapping[str, Any]:
        """The fields for `--json`."""
        return {
            "type": self.kind,
            "problem": self.problem,
            "allowed": self.allowed,
            "hint": self.hint,
            "exit_status": self.exit_status,
        }


def describe_failure(error: BaseException) -> Failure:
    """The failure to report for an exception."""
    for kind, describe in _TABLE:
        if isinstance(error, kind):
            return describe(error)
    return Failure(
        kind=type(error).__name__,
        problem=f"unexpected {type(error).__name__}: {error}",
        hint="this is a defect of tightfit: repeat the command with --debug and report the "
        "traceback",
    )


def _own(error: Any) -> Failure:
    return Failure(
        kind=type(error).__name__,
        problem=error.problem,
        allowed=error.allowed,
        hint=error.hint,
        exit_status=error.exit_status,
    )


def _click(error: Any) -> Failure:
    command = error.ctx.command_path if getattr(error, "ctx", None) else "tightfit"
    return Failure(
        kind="UsageError",
        problem=error.format_message().rstrip("."),
        hint=f"`{command} --help` shows the options and examples",
        exit_status=USAGE,
    )


def _interrupted(_error: Any) -> Failure:
    return Failure(
        kind="Interrupted",
        problem="interrupted",
        hint="run the same command again to resume",
        exit_status=INTERRUPTED,
    )


def _out_of_memory(_error: Any) -> Failure:
    return Failure(
        kind="MemoryError",
        problem="this machine's memory is exhausted",
        hint="use fewer or shorter calibration samples: --calib-samples 32 --calib-length 512",
    )


def _system(error: Any) -> Failure:
    where = f": {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space, or choose another folder with -o; then run the same "
        "command again to resume",
        errno.EACCES: "choose a folder that you may write, with -o",
        errno.EROFS: "choose a folder that you may write, with -o",
        errno.EEXIST: "a file is in the way: choose another folder with -o",
        errno.ENOTDIR: "a file is in the way: choose another folder with -o",
        errno.ENOENT: "check the path",
    }
    return Failure(
        kind=type(error).__name__,
        problem=f"{error.strerror or error}{where}",
        hint=hints.get(error.errno, "repeat the command with --debug to see where it happened"),
    )


_TABLE: tuple[tuple[type[BaseException], Callable[[Any], Failure]], ...] = (
    (TightfitError, _own),
    (KeyboardInterrupt, _interrupted),
    (typer.Abort, _interrupted),
    (_ClickError, _click),
    (MemoryError, _out_of_memory),
    (OSError, _system),
)
"""The first that matches wins."""
