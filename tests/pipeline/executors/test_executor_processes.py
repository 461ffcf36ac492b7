"""Tasks in processes: each starts an interpreter with torch, so tests use few of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import executor_cases as cases
import pytest
from executor_tasks import Dies, Inputs, Note, Raises

from tightfit.errors import CheckpointError
from tightfit.pipeline.executors.processes import ProcessExecutor


def two(shared: Inputs) -> ProcessExecutor[Inputs]:
    return ProcessExecutor(shared, n_workers=2)


def test_runs_all_and_loses_a_worker(tmp_path: Path) -> None:
    tasks = [Note(f"{n}", then=(Note(f"{n}.0"),)) for n in range(6)]
    with two(Inputs(folder=tmp_path)) as executor:
        keys = [task.key for task in executor.run([*tasks[:3], Dies("dies", times=1), *tasks[3:]])]
    assert sorted(keys) == sorted([f"{n}{end}" for n in range(6) for end in ("", ".0")] + ["dies"])
    seen = [path.read_text() for path in tmp_path.iterdir() if path.name[0].isdigit()]
    assert len(set(seen)) <= 3, "a worker keeps its process and the object that it was given"
    workers = {text.split()[0] for text in seen}
    assert str(os.getpid()) not in workers
    assert all(state(worker) == "gone" for worker in workers)


def test_raises_as_raised_with_the_stack_of_the_worker(tmp_path: Path) -> None:
    with (
        two(Inputs(folder=tmp_path)) as executor,
        pytest.raises(CheckpointError) as caught,
    ):
        list(executor.run([Raises("a")]))
    assert type(caught.value) is CheckpointError
    assert str(caught.value) == "a.weight is not there\nall of them\ncopy it again"
    (note,) = caught.value.__notes__
    assert "executor_tasks.py" in note


@pytest.mark.slow
def test_what_cannot_be_pickled_is_told_in_words(tmp_path: Path) -> None:
    with two(Inputs(folder=tmp_path)) as executor, pytest.raises(RuntimeError) as caught:
        list(executor.run([Raises("a", "two")]))
    assert str(caught.value) == "NeedsTwoError: left and right"


@pytest.mark.slow
def test_gives_up_on_a_task_that_always_dies(tmp_path: Path) -> None:
    problem = cases.gives_up_on_a_task_that_always_dies(two, tmp_path)
    assert "was killed by SIGKILL" in problem


SCRIPT = """
import sys
from pathlib import Path
from executor_tasks import Inputs, Note
from tightfit.errors import CheckpointError
from tightfit.pipeline.executors.processes import ProcessExecutor

if __name__ == "__main__":
    with ProcessExecutor(Inputs(folder=Path(sys.argv[1])), n_workers=1) as executor:
        list(executor.run([Note("pid", then=(Note("never", after=("nothing",)),))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_job(tmp_path: Path, ending: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, kill -9 only the job: the worker ends with it, silently."""
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    job = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    Inputs(folder=tmp_path).wait_for("pid")
    worker = (tmp_path / "pid").read_text().split()[0]
    if ending == signal.SIGINT:
        os.killpg(job.pid, ending)
    else:
        job.send_signal(ending)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == -ending
    deadline = time.monotonic() + 20
    while state(worker) not in ("gone", "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert stderr.count("Traceback") == (1 if ending == signal.SIGINT else 0), stderr


def state(pid: str) -> str:
    """Of a process, as Linux calls it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"
