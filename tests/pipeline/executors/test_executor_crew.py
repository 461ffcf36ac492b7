"""What all parallel executors have in common, with workers that are threads and die on command."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import executor_cases as cases
import pytest
from executor_tasks import Inputs, Note

from tightfit.pipeline.executors.attempt import Outcome, attempt
from tightfit.pipeline.executors.base import Task, WorkerDiedError
from tightfit.pipeline.executors.board import Board, WorkerLostError
from tightfit.pipeline.executors.crew import CrewExecutor


class ThreadWorker:
    """Dies at tasks called `die...`, as often as `lives` says; ends others when it is killed."""

    def __init__(self, crew: "ThreadCrew") -> None:
        self.crew = crew
        self.killed = threading.Event()

    def perform(self, task: Task[Inputs]) -> Outcome[Inputs]:
        if task.key.startswith("stuck"):
            self.killed.wait(60)
            raise WorkerLostError("was killed")
        if task.key.startswith("die") and self.crew.deaths_left:
            self.crew.deaths_left -= 1
            raise WorkerLostError("fell over")
        return attempt(task, self.crew.inputs)

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None:
        self.crew.n_closed += 1


class ThreadCrew(CrewExecutor[Inputs]):
    def __init__(self, inputs: Inputs, n_workers: int = 3, deaths: int = 0) -> None:
        super().__init__(inputs)
        self.inputs = inputs
        self.n_workers = n_workers
        self.deaths_left = deaths
        self.n_hired = 0
        self.n_closed = 0

    def _prepare(self, _opened: ExitStack, /) -> int:
        return self.n_workers

    def _hire(self, _board: Board[Inputs], /) -> ThreadWorker:
        self.n_hired += 1
        return ThreadWorker(self)


def test_runs_all(tmp_path: Path) -> None:
    cases.runs_all_tasks_and_what_they_return(ThreadCrew, tmp_path)


def test_raises_as_raised(tmp_path: Path) -> None:
    cases.raises_as_raised(ThreadCrew, tmp_path)


def test_draws_lazily(tmp_path: Path) -> None:
    cases.draws_only_for_free_workers(ThreadCrew, tmp_path, n_workers=3)


def test_follow_ups_do_not_wait_for_the_caller(tmp_path: Path) -> None:
    cases.runs_follow_ups_while_the_caller_draws(ThreadCrew, tmp_path)


def test_follow_ups_go_first(tmp_path: Path) -> None:
    """One worker: the parallel order is the serial one."""
    then = (Note("a.0", then=(Note("a.0.0"),)), Note("a.1"))
    with ThreadCrew(Inputs(folder=tmp_path), n_workers=1) as crew:
        keys = [task.key for task in crew.run([Note("a", then=then), Note("b")])]
    assert keys == ["a", "a.0", "a.0.0", "a.1", "b"]


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_task_that_lost_its_worker_is_done_by_another(tmp_path: Path, deaths: int) -> None:
    tasks = [Note("a"), Note("die", then=(Note("die.0"),)), Note("b")]
    crew = ThreadCrew(Inputs(folder=tmp_path), n_workers=2, deaths=deaths)
    with crew:
        keys = sorted(task.key for task in crew.run(tasks))
    assert keys == ["a", "b", "die", "die.0"]
    assert crew.n_hired == crew.n_closed > deaths


def test_each_task_may_lose_three_workers(tmp_path: Path) -> None:
    """Deaths are those of a task: six among two tasks are no reason to give up."""
    crew = ThreadCrew(Inputs(folder=tmp_path), n_workers=1, deaths=3)
    with crew:
        list(crew.run([Note("die1")]))
        crew.deaths_left = 3
        assert [task.key for task in crew.run([Note("die2")])] == ["die2"]


def test_the_fourth_death_is_told(tmp_path: Path) -> None:
    crew = ThreadCrew(Inputs(folder=tmp_path), deaths=4)
    with crew, pytest.raises(WorkerDiedError) as caught:
        list(crew.run([Note("stuck"), Note("die")]))
    assert caught.value.problem == "die: its worker fell over, as did those of 3 attempts before"
    assert "fewer workers" in caught.value.hint
    assert crew.deaths_left == 0
    assert crew.n_hired == crew.n_closed


def test_a_caller_that_gives_up_stops_the_workers(tmp_path: Path) -> None:
    crew = ThreadCrew(Inputs(folder=tmp_path))
    with crew:
        run = crew.run([Note("a"), Note("stuck")])
        assert next(run).key == "a"
        run.close()
        assert crew.n_hired == crew.n_closed
        with pytest.raises(AssertionError, match="closed"):
            next(crew.run([Note("late")]))


def test_leaving_the_executor_stops_the_workers_of_a_run_that_nobody_reads(tmp_path: Path) -> None:
    with ThreadCrew(Inputs(folder=tmp_path)) as crew:
        run = crew.run([Note("a"), Note("stuck")])
        assert next(run).key == "a"
    assert crew.n_hired == crew.n_closed


def test_what_the_drawing_raises_comes_out(tmp_path: Path) -> None:
    def source():  # type: ignore[no-untyped-def]
        yield Note("stuck")
        raise KeyboardInterrupt

    with ThreadCrew(Inputs(folder=tmp_path)) as crew, pytest.raises(KeyboardInterrupt):
        list(crew.run(source()))
    assert crew.n_closed == crew.n_hired


def test_what_hiring_raises_comes_out(tmp_path: Path) -> None:
    class NoRoom(ThreadCrew):
        def _hire(self, _board: Board[Inputs], /) -> ThreadWorker:
            raise MemoryError("no room for a worker")

    with (
        NoRoom(Inputs(folder=tmp_path)) as crew,
        pytest.raises(MemoryError, match="no room for a worker"),
    ):
        list(crew.run([Note("a")]))


def test_few_tasks_start_few_workers(tmp_path: Path) -> None:
    """A process costs seconds and hundreds of MB; a task at a time needs one."""
    inputs = Inputs(folder=tmp_path)
    crew = ThreadCrew(inputs, n_workers=4)
    with crew:
        for n in range(5):
            list(crew.run([Note(f"{n}")]))
            # Its worker comes back for the next task a moment after it has reported this one.
            while crew._board._n_idle == 0:
                time.sleep(0.001)
    assert crew.n_hired == 1


def test_nothing_to_do_starts_nobody(tmp_path: Path) -> None:
    crew = ThreadCrew(Inputs(folder=tmp_path))
    with crew:
        assert list(crew.run([])) == []
    assert crew.n_hired == 0
