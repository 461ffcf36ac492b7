"""Workers that each have one task at a time, watched by a thread of this process each.

The threads only wait: they start a worker when a task needs one, hand it tasks and pass on what
comes back. So what a task returns is started at once, also while the caller draws the next task,
which may take minutes.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, Protocol, Self

from tightfit.pipeline.executors.attempt import Outcome, torch_threads
from tightfit.pipeline.executors.base import S, Task
from tightfit.pipeline.executors.board import Board, WorkerLostError


class Worker(Protocol[S]):
    """Another process."""

    def perform(self, task: Task[S]) -> Outcome[S]:
        """Block until the task is done; raises `WorkerLostError` when the worker is gone."""

    def kill(self) -> None:
        """End it at once; called from another thread than `perform`, and more than once."""

    def close(self) -> None:
        """End it and free what it holds here."""


class CrewExecutor(ABC, Generic[S]):
    """An executor with several workers of one kind."""

    def __init__(self, shared: S) -> None:
        """Keep what all tasks share."""
        self._shared = shared
        self._open = ExitStack()
        self._board: Board[S] | None = None
        self._workers: set[Worker[S]] = set()
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _prepare(self, opened: ExitStack, /) -> int:
        """Open what hiring needs, to be closed with `opened`; returns the number of workers."""

    @abstractmethod
    def _hire(self, board: Board[S], /) -> Worker[S] | None:
        """Start a worker; None when the board was closed meanwhile."""

    def __enter__(self) -> Self:
        """Get ready; workers start with the tasks that need them."""
        with ExitStack() as opened:
            n_workers = self._prepare(opened)
            self._open = opened.pop_all()
        board: Board[S] = Board(n_workers)
        self._board = board
        for _ in range(n_workers):
            thread = threading.Thread(target=self._serve, args=(board,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the workers, whatever they are doing."""
        self._stop()
        self._open.close()

    def run(self, tasks: Iterable[Task[S]]) -> Iterator[Task[S]]:
        """Run them all, in no order but that what a task returns goes first."""
        board = self._board
        assert board is not None, "the executor was not entered"
        assert not board.closed, "a run that failed closed the executor"
        try:
            with torch_threads(self._shared.threads):
                yield from _draw(iter(tasks), board)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._board is None:
            return
        self._board.close()
        for worker in self._workers.copy():
            worker.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self, board: Board[S]) -> None:
        """Have a worker for the tasks of the board, and a new one whenever it is lost."""
        try:
            while board.needs_worker():
                try:
                    worker = self._hire(board)
                finally:
                    board.hired()
                if worker is not None:
                    self._employ(worker, board)
        except BaseException as error:
            # Nobody looks at a thread: what ends it has to end the run.
            board.fail(error)

    def _employ(self, worker: Worker[S], board: Board[S]) -> None:
        self._workers.add(worker)
        try:
            while (task := board.take()) is not None:
                try:
                    outcome = worker.perform(task)
                except WorkerLostError as lost:
                    board.lose(task, lost)
                    return
                board.finish(task, outcome)
        finally:
            self._workers.discard(worker)
            worker.close()


def _draw(tasks: Iterator[Task[S]], board: Board[S]) -> Iterator[Task[S]]:
    """Put the tasks up as workers get free; yields what is finished."""
    more = True
    while more or not board.done():
        yield from board.wait(more)
        if more and board.has_room():
            drawn = next(tasks, None)
            more = drawn is not None
            if drawn is not None:
                board.add(drawn)
