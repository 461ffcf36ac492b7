"""Tasks and what runs them.

A task leaves its result in files; what it returns are the tasks that can be done after it. So a
task may run anywhere, and may run again when the worker that had it died.

Bits must not depend on who does the work: `shared.threads` are torch's threads in every worker, and
while a run lasts in the process that draws its tasks too.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tightfit.errors import TightfitError


class SharedInputs(Protocol):
    """What every task of a job needs; picklable, unpickled once in each worker."""

    @property
    def threads(self) -> int:
        """Of torch."""


S = TypeVar("S", bound=SharedInputs)
S_contra = TypeVar("S_contra", bound=SharedInputs, contravariant=True)


class Task(Protocol[S_contra]):
    """A picklable unit of work that may be repeated."""

    @property
    def key(self) -> str:
        """Its name, unique in the job."""

    def run(self, shared: S_contra, /) -> Sequence["Task[S_contra]"]:
        """Do it; returns what can be done afterwards."""


class Executor(Protocol[S]):
    """Runs tasks, in one run after another; workers stay until it is closed."""

    def __enter__(self) -> Self:
        """Get ready to run."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the workers, whatever they are doing."""

    def run(self, tasks: Iterable[Task[S]]) -> Iterator[Task[S]]:
        """Run them and the tasks that they return; yields each one as it is finished.

        What a task returns is started before anything else, and the next of `tasks` is drawn only
        when a worker would be idle without it. The first exception of a task, as it was raised,
        ends the run; so does an iterator that is given up half-way. No worker goes on then, and the
        executor is closed for further runs. Raises `WorkerDiedError`.
        """


class WorkerDiedError(TightfitError):
    """A task ended its worker, and each of those that tried it again."""
