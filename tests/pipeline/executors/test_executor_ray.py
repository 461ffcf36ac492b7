"""Tasks on a Ray cluster of two machines, both of them this one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from executor_tasks import Dies, Inputs, Note, Raises, Where

from tightfit.errors import CheckpointError, MissingPackageError, UsageError
from tightfit.pipeline.executors.ray import RayExecutor


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Three CPUs and two GPUs that nobody looks for."""
    with pytest.MonkeyPatch.context() as patch:
        # Workers find the tasks as they would find tightfit: installed.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        cluster.add_node(num_cpus=2, num_gpus=2, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.mark.slow
def test_machines_share_the_work_and_a_worker_is_lost(cluster, tmp_path: Path, capsys) -> None:
    inputs = Inputs(folder=tmp_path)
    meet = ("x", "y", "z")
    tasks = [Note("a", then=(Note("a.0"), Dies("a.1", times=1))), Note("b")]
    with RayExecutor(inputs, cluster.address) as executor:
        assert {task.key for task in executor.run([Where(key, meet) for key in meet])} == {*meet}
        assert sorted(task.key for task in executor.run(tasks)) == ["a", "a.0", "a.1", "b"]
        with pytest.raises(CheckpointError) as caught:
            list(executor.run([Raises("c")]))
    nodes = [(tmp_path / key).read_text().split()[0] for key in meet]
    assert len(set(nodes)) == 2
    assert (tmp_path / "a.1.died0").exists()
    assert capsys.readouterr().out == "", "data goes to stdout, not what Ray has to say"
    assert type(caught.value) is CheckpointError
    assert str(caught.value) == "a.weight is not there\nall of them\ncopy it again"


@pytest.mark.slow
def test_a_machine_is_lost(cluster, tmp_path: Path) -> None:
    """Its task goes to another one, although there is no room for a worker in its place."""
    inputs = Inputs(folder=tmp_path)
    keys = ("w", "x", "y", "z")
    tasks = [Where(key, (*keys, "go")) for key in keys]
    lost = cluster.add_node(num_cpus=1)

    def lose_a_machine() -> None:
        inputs.wait_for(*keys)
        seen = [(tmp_path / key).read_text().split() for key in keys]
        (worker,) = [worker for node, worker in seen if node == lost.node_id]
        cluster.remove_node(lost, allow_graceful=False)
        wait_until_gone(worker)
        (tmp_path / "go").touch()

    losing = threading.Thread(target=lose_a_machine)
    losing.start()
    with RayExecutor(inputs, cluster.address) as executor:
        assert sorted(task.key for task in executor.run(tasks)) == [*keys]
    losing.join()
    nodes = {(tmp_path / key).read_text().split()[0] for key in keys}
    assert len(nodes) == 2
    assert lost.node_id not in nodes


@pytest.mark.slow
def test_a_gpu_each_and_nobody_left_after_ctrl_c(cluster, tmp_path: Path) -> None:
    inputs = Inputs(folder=tmp_path)

    def interrupt() -> None:
        inputs.wait_for("a", "b")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with (
        RayExecutor(inputs, cluster.address, gpus_per_task=1) as executor,
        pytest.raises(KeyboardInterrupt),
    ):
        list(executor.run([Where(key, ("never",)) for key in "ab"]))
    interrupting.join()
    seen = [(tmp_path / key).read_text().split() for key in "ab"]
    assert {gpu for _, _, gpu in seen} == {"0", "1"}
    for _, worker, _ in seen:
        wait_until_gone(worker)


def wait_until_gone(pid: str) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, pid
        time.sleep(0.05)


@pytest.mark.slow
def test_no_room(cluster, tmp_path: Path) -> None:
    inputs = Inputs(folder=tmp_path, threads=3)
    with pytest.raises(UsageError) as caught, RayExecutor(inputs, cluster.address):
        pass
    assert "has 3 CPUs and 0 GPUs for a worker" in caught.value.problem
    assert "2 CPUs and 2 GPUs" in caught.value.allowed
    assert "1 CPUs and 0 GPUs" in caught.value.allowed


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://head:10001", "Ray Client cannot be used"),
        ("127.0.0.1:9", "refused"),
        ("nowhere", "Invalid address"),
    ],
)
def test_addresses_that_are_no_cluster(address: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason), RayExecutor(Inputs(folder=tmp_path), address):
        pass


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'tightfit\[ray\]'"):
        RayExecutor(Inputs(folder=tmp_path), "auto")
