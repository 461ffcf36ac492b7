"""One attempt at a task, the same in every worker."""

import pickle
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

import torch

from tightfit.pipeline.executors.base import S, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Generic[S]):
    """What a worker sends back."""

    then: Sequence[Task[S]] = ()
    """Tasks that can be done now."""
    error: Exception | None = None
    """What the task raised."""


def attempt(task: Task[S], shared: S) -> Outcome[S]:
    """Run the task in this process, with the threads that the job has everywhere."""
    torch.set_num_threads(shared.threads)
    try:
        return Outcome(then=tuple(task.run(shared)))
    except Exception as error:
        return Outcome(error=_portable(error))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use that many threads; puts the former number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _portable(error: Exception) -> Exception:
    """The exception with the worker's stack in a note; its text where it cannot be pickled.

    Exceptions whose constructor takes other arguments than they keep fail when they are unpickled,
    which would look like a dead worker.
    """
    stack = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{stack}")
    return error
