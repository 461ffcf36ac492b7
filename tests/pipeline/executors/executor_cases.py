"""What every executor has to do, asked of each in its own test file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_tasks import Dies, Inputs, Note, Raises

from tightfit.errors import CheckpointError
from tightfit.pipeline.executors.base import WorkerDiedError

Open = Callable[[Inputs], Any]


def runs_all_tasks_and_what_they_return(opened: Open, folder: Path) -> None:
    tasks = [Note(f"{n}", then=(Note(f"{n}.0", then=(Note(f"{n}.0.0"),)),)) for n in range(4)]
    expected = {task.key + end for task in tasks for end in ("", ".0", ".0.0")}
    before = torch.get_num_threads()
    with opened(Inputs(folder=folder, threads=2)) as executor:
        keys = [task.key for task in executor.run(tasks)]
        assert sorted(keys) == sorted(expected)
        again = [task.key for task in executor.run([Note("again")])]
    assert again == ["again"]
    for key in expected:
        order = [keys.index(key[:end]) for end in range(1, len(key) + 1, 2)]
        assert order == sorted(order), "a task is yielded before what it returned"
    threads = {path.read_text().split()[1] for path in folder.iterdir()}
    assert threads == {"2"}
    assert torch.get_num_threads() == before


def raises_as_raised(opened: Open, folder: Path) -> None:
    """The type, the fields and the text, not a wrapper's."""
    with (
        opened(Inputs(folder=folder)) as executor,
        pytest.raises(CheckpointError) as caught,
    ):
        list(executor.run([Raises("a")]))
    assert type(caught.value) is CheckpointError
    assert str(caught.value) == "a.weight is not there\nall of them\ncopy it again"
    assert (caught.value.problem, caught.value.hint) == ("a.weight is not there", "copy it again")
    with (
        opened(Inputs(folder=folder)) as executor,
        pytest.raises(OSError, match="No space") as disk,
    ):
        list(executor.run([Raises("a", "disk")]))
    assert (disk.value.errno, disk.value.filename) == (28, str(folder))


def gives_up_on_a_task_that_always_dies(opened: Open, folder: Path) -> str:
    """Four attempts; returns the message."""
    with (
        opened(Inputs(folder=folder)) as executor,
        pytest.raises(WorkerDiedError) as caught,
    ):
        list(executor.run([Dies("deadly", times=99)]))
    assert len(list(folder.glob("deadly.died*"))) == 4
    assert "deadly: its worker" in caught.value.problem
    assert "fewer workers" in caught.value.hint
    return caught.value.problem


def draws_only_for_free_workers(opened: Open, folder: Path, n_workers: int) -> None:
    """Each task waits for the test, which sees how many were drawn for how many free workers."""
    drawn: list[str] = []

    def source() -> Iterator[Note]:
        for n in range(8):
            drawn.append(f"{n}")
            if len(drawn) == n_workers:
                (folder / "go").touch()
            then = (Note(f"{n}.0"), Note(f"{n}.1"))
            yield Note(f"{n}", then=then, after=("go",))

    n_finished = 0
    with opened(Inputs(folder=folder)) as executor:
        for task in executor.run(source()):
            # Drawn tasks are finished, or under way in one of the workers.
            n_roots = sum(path.name.isdigit() for path in folder.iterdir())
            n_finished += 1
            assert len(drawn) <= n_roots + n_workers, task
    assert n_finished == 24


def runs_follow_ups_while_the_caller_draws(opened: Open, folder: Path) -> None:
    """The second task is drawn once the follow-up of the first has been done: else it hangs."""
    inputs = Inputs(folder=folder)

    def source() -> Iterator[Note]:
        yield Note("first", then=(Note("first.0"),))
        inputs.wait_for("first.0")
        yield Note("second")

    with opened(inputs) as executor:
        keys = [task.key for task in executor.run(source())]
    assert keys == ["first", "first.0", "second"]
