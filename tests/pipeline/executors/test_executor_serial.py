"""Tasks in this process, in order."""

from collections.abc import Iterator
from pathlib import Path

import executor_cases as cases
from executor_tasks import Inputs, Note

from tightfit.pipeline.executors.serial import SerialExecutor


def test_runs_all(tmp_path: Path) -> None:
    cases.runs_all_tasks_and_what_they_return(SerialExecutor, tmp_path)


def test_raises_as_raised(tmp_path: Path) -> None:
    cases.raises_as_raised(SerialExecutor, tmp_path)


def test_draws_lazily(tmp_path: Path) -> None:
    cases.draws_only_for_free_workers(SerialExecutor, tmp_path, n_workers=1)


def test_the_order_is_depth_first_and_drawing_comes_last(tmp_path: Path) -> None:
    events: list[str] = []

    def source() -> Iterator[Note]:
        for n in "ab":
            events.append(f"draw {n}")
            then = (Note(f"{n}.0", then=(Note(f"{n}.0.0"),)), Note(f"{n}.1"))
            yield Note(n, then=then)

    finished = SerialExecutor(Inputs(folder=tmp_path)).run(source())
    events.extend(task.key for task in finished)
    assert events == [
        *("draw a", "a", "a.0", "a.0.0", "a.1"),
        *("draw b", "b", "b.0", "b.0.0", "b.1"),
    ]
