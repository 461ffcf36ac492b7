"""Tasks one after another in this process."""

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self

from tightfit.pipeline.executors.attempt import torch_threads
from tightfit.pipeline.executors.base import S, Task


class SerialExecutor(Generic[S]):
    """The caller is the only worker."""

    def __init__(self, shared: S) -> None:
        """Keep what all tasks share."""
        self._shared = shared

    def __enter__(self) -> Self:
        """There is nothing to start."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """There is nothing to stop."""

    def run(self, tasks: Iterable[Task[S]]) -> Iterator[Task[S]]:
        """Run them in order, each followed by what it returns."""
        with torch_threads(self._shared.threads):
            for drawn in tasks:
                ready = deque([drawn])
                while ready:
                    task = ready.popleft()
                    ready.extendleft(reversed(task.run(self._shared)))
                    yield task
