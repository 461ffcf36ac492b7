"""Workers on the machines of a Ray cluster.

A worker is a Ray actor that reserves `shared.threads` CPUs (and GPUs) of one machine until the
executor is closed: so it unpickles the shared inputs once and keeps its GPU. Actors are spread over
the machines. An actor that died is hired anew, wherever there is room; its task goes to whoever is
free first.

Every machine needs this tightfit, and sees the checkpoint and the job's folder at the same paths.
"""

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tightfit.errors import MissingPackageError, UsageError
from tightfit.pipeline.executors.attempt import Outcome, attempt
from tightfit.pipeline.executors.base import S, Task
from tightfit.pipeline.executors.board import Board, WorkerLostError
from tightfit.pipeline.executors.crew import CrewExecutor, Worker

LOCAL = "local"
"""Address that starts a cluster of this machine alone, for as long as the executor is open."""

_CONNECT_S = 10
"""For the head of a cluster to answer: Ray itself goes on asking for minutes."""

_POLL_S = 0.5
"""How often a worker that waits for room asks whether it is still wanted."""


class RayExecutor(CrewExecutor[S]):
    """Workers are actors of a Ray cluster, as many as it has room for."""

    def __init__(self, shared: S, address: str, *, gpus_per_task: float = 0) -> None:
        """Keep what all tasks share, the `HOST:PORT` of the cluster and the GPUs of a worker.

        The device `cuda` means the GPU that Ray gave to the worker. `auto` is the cluster that this
        machine belongs to. Raises `MissingPackageError`; opening it raises `UsageError` when there
        is no such cluster or no room on it.
        """
        super().__init__(shared)
        self._ray = _import_ray()
        self._address = address
        self._gpus = gpus_per_task
        self._shared_ref: Any = None

    def _prepare(self, opened: ExitStack, /) -> int:
        opened.enter_context(_quiet())
        _join(self._ray, self._address)
        opened.callback(self._ray.shutdown)
        n_workers = self._count_room()
        self._shared_ref = self._ray.put(self._shared)
        return n_workers

    def _hire(self, board: Board[S], /) -> Worker[S] | None:
        actor = (
            self._ray.remote(_Actor)
            .options(
                num_cpus=self._shared.threads,
                num_gpus=self._gpus,
                # The board retries, wherever there is room.
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            .remote(self._shared_ref)
        )
        started = actor.started.remote()
        while not self._ray.wait([started], timeout=_POLL_S)[0]:
            if board.closed:
                self._ray.kill(actor)
                return None
        try:
            place = self._ray.get(started)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise _cannot_start(self._address, error) from error
            place = "while it started"
        return _RayWorker(self._ray, actor, place)

    def _count_room(self) -> int:
        """Workers that the machines have room for."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        threads = self._shared.threads
        room = sum(_room(machine, threads, self._gpus) for machine in machines)
        if not room:
            has = "; ".join(
                f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs"
                for machine in machines
            )
            raise UsageError(
                f"no machine of the Ray cluster {self._address} has {threads} CPUs and "
                f"{self._gpus:g} GPUs for a worker",
                allowed=f"its machines have {has}",
                hint="use fewer threads, or a device that the machines have",
            )
        return room


class _RayWorker:
    def __init__(self, ray: Any, actor: Any, place: str) -> None:
        self._ray = ray
        self._actor = actor
        self._place = place

    def perform(self, task: Task[S]) -> Outcome[S]:
        errors = self._ray.exceptions
        try:
            outcome: Outcome[S] = self._ray.get(self._actor.perform.remote(task))
        except (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            raise WorkerLostError(f"died {self._place}") from error
        return outcome

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def close(self) -> None:
        self._ray.kill(self._actor)


class _Actor:
    """The worker's side."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def started(self) -> str:
        """Where it is; the answer comes once a machine has room."""
        return f"on {socket.gethostname()} (process {os.getpid()})"

    def perform(self, task: Task[Any]) -> Outcome[Any]:
        return attempt(task, self._shared)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from printing on stdout, where our data goes, how workers ended.

    There is no option against it. Our own warning says it, and the error that ends a run.
    """
    printer: Any = importlib.import_module("ray._private.worker")
    before = printer._worker_logs_enabled
    printer._worker_logs_enabled = False
    try:
        yield
    finally:
        printer._worker_logs_enabled = before


def _join(ray: Any, address: str) -> None:
    if "://" in address:
        raise UsageError(
            f"--ray {address}: Ray Client cannot be used",
            allowed="HOST:PORT, auto or local",
            hint="start the job on a machine of the cluster: it works on the same files",
        )
    # Read when a cluster is started: Ray reports its usage to its makers otherwise.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local = {"include_dashboard": False} if address == LOCAL else {}
    try:
        host, separator, port = address.rpartition(":")
        if separator:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        # What workers print would land among our data on stdout.
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot join the Ray cluster {address}: {error}",
            allowed="HOST:PORT of its head, auto on a machine of it, or local",
            hint="start one: ray start --head, then ray start --address HOST:PORT elsewhere",
        ) from error


def _cannot_start(address: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[-1]
    return UsageError(
        f"a worker on the Ray cluster {address} cannot start: {reason}",
        hint="every machine needs the same versions of Python, ray, torch and tightfit",
    )


def _room(machine: dict[str, float], threads: int, gpus: float) -> int:
    by_cpus = machine.get("CPU", 0) // threads
    return int(min(by_cpus, machine.get("GPU", 0) // gpus) if gpus else by_cpus)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingPackageError(
            "many machines need the package ray, which is not installed",
            hint="install it on every machine: pip install 'tightfit[ray]'",
        ) from None
