"""The tasks of a run between the thread that draws them and those that wait for the workers."""

import logging
import threading
from collections import Counter, deque
from typing import Generic

from tightfit.pipeline.executors.attempt import Outcome
from tightfit.pipeline.executors.base import S, Task, WorkerDiedError

_MAX_RETRIES = 3
"""After deaths of its worker: a lost machine or a full memory may pass, a crash of the task not."""

_log = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """A worker is gone and with it the attempt at its task; says how it ended."""


class Board(Generic[S]):
    """Every method may be called from any thread; none holds the lock while it runs a task."""

    def __init__(self, n_workers: int) -> None:
        """An open board without tasks; at most `n_workers` may be at work."""
        self._n_workers = n_workers
        self._changed = threading.Condition()
        self._ready: deque[Task[S]] = deque()
        self._finished: deque[Task[S]] = deque()
        self._deaths: Counter[str] = Counter()
        self._error: BaseException | None = None
        self._closed = False
        self._n_busy = 0
        self._n_idle = 0
        self._n_hiring = 0

    @property
    def closed(self) -> bool:
        """Whether nothing may be started any more."""
        return self._closed

    def close(self) -> None:
        """Forget the tasks that wait, and let all workers end."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the run with an exception; the first one counts."""
        with self._changed:
            if self._error is None and not self._closed:
                self._error = error
            self._changed.notify_all()

    # The thread that draws.

    def add(self, task: Task[S]) -> None:
        """Put up a drawn task."""
        with self._changed:
            self._ready.append(task)
            self._changed.notify_all()

    def wait(self, more: bool) -> list[Task[S]]:
        """Block until there is something to do; returns the tasks that were finished meanwhile.

        None were when nothing is under way any more or, with `more` to draw, a worker is free.
        Raises what ended the run.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or self._finished or self._done() or (more and self._has_room())
            )
            if self._error is not None:
                raise self._error
            finished = list(self._finished)
            self._finished.clear()
            return finished

    def has_room(self) -> bool:
        """Whether a worker would be idle without another task."""
        with self._changed:
            return self._has_room()

    def done(self) -> bool:
        """Whether every task that was put up is finished and was returned by `wait`."""
        with self._changed:
            return self._done()

    def _has_room(self) -> bool:
        return self._n_busy + len(self._ready) < self._n_workers

    def _done(self) -> bool:
        return not (self._ready or self._n_busy or self._finished)

    # The threads of the workers.

    def needs_worker(self) -> bool:
        """Block until a task waits for a worker that is not there yet; False when closed.

        Who got True calls `hired` next, also after a failure.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(self._ready) > self._n_idle + self._n_hiring
            )
            if not self._closed:
                self._n_hiring += 1
            return not self._closed

    def hired(self) -> None:
        """The worker is there."""
        with self._changed:
            self._n_hiring -= 1
            self._changed.notify_all()

    def take(self) -> Task[S] | None:
        """Block until there is a task for a worker; None when closed.

        Who got one calls `finish` or `lose` next.
        """
        with self._changed:
            self._n_idle += 1
            self._changed.wait_for(lambda: self._closed or self._ready)
            self._n_idle -= 1
            if self._closed:
                return None
            self._n_busy += 1
            return self._ready.popleft()

    def finish(self, task: Task[S], outcome: Outcome[S]) -> None:
        """Put up what the task returned, before all others."""
        if outcome.error is not None:
            self.fail(outcome.error)
        with self._changed:
            self._n_busy -= 1
            if outcome.error is None and not self._closed:
                self._ready.extendleft(reversed(outcome.then))
                self._finished.append(task)
            self._changed.notify_all()

    def lose(self, task: Task[S], lost: WorkerLostError) -> None:
        """Put the task up again, or give up."""
        with self._changed:
            self._n_busy -= 1
            if self._closed:
                return
            self._deaths[task.key] += 1
            deaths = self._deaths[task.key]
            if deaths <= _MAX_RETRIES:
                _log.warning("%s: its worker %s; trying it again", task.key, lost)
                self._ready.appendleft(task)
                self._changed.notify_all()
                return
        died = WorkerDiedError(
            f"{task.key}: its worker {lost}, as did those of {deaths - 1} attempts before",
            hint="when memory ran out use fewer workers; finished work is kept, the same "
            "command goes on from it",
        )
        died.__cause__ = lost
        self.fail(died)
