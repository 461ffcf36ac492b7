"""Processes of this machine, each fresh from the interpreter (`spawn`).

A process has a pipe of its own: when it dies, the pipe says so, no other one is disturbed, and the
task that it had is known.
"""

import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from tightfit.pipeline.executors.attempt import Outcome, attempt
from tightfit.pipeline.executors.base import S, Task
from tightfit.pipeline.executors.board import Board, WorkerLostError
from tightfit.pipeline.executors.crew import CrewExecutor, Worker

# A forked child would share threads and devices of torch that do not survive the fork.
_SPAWN = multiprocessing.get_context("spawn")


class ProcessExecutor(CrewExecutor[S]):
    """Workers are processes of this machine."""

    def __init__(self, shared: S, n_workers: int) -> None:
        """Keep what all tasks share; at most `n_workers` processes, of `shared.threads` threads."""
        super().__init__(shared)
        assert n_workers > 0, n_workers
        self._n_workers = n_workers

    def _prepare(self, _opened: ExitStack, /) -> int:
        return self._n_workers

    def _hire(self, _board: Board[S], /) -> Worker[S]:
        return _ProcessWorker(self._shared)


class _ProcessWorker:
    def __init__(self, shared: Any) -> None:
        # Ctrl-C goes to all processes of a terminal. This thread and its children leave it to the
        # main thread, which kills them. The tracker first: to start it unblocks the signal.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, shared), daemon=True)
        self._process.start()
        # With our copy closed, reading fails once the process is gone.
        theirs.close()

    def perform(self, task: Task[S]) -> Outcome[S]:
        try:
            self._pipe.send(task)
            outcome: Outcome[S] = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerLostError(_end(self._process.exitcode)) from error
        return outcome

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: "Connection[Any, Any]", shared: Any) -> None:
    """The worker's side: tasks come in, outcomes go out, until the pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(task, shared))


def _end_with_parent() -> None:
    """Leave nobody at work on files that a new start of the job writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _end(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit status {exit_code}"
