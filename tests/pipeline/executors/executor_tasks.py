"""Tasks that write what they see into files, importable in the workers of every executor."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tightfit.errors import CheckpointError

_GIVE_UP_S = 60


@dataclass(frozen=True, kw_only=True)
class Inputs:
    folder: Path
    threads: int = 1

    def write(self, name: str, text: str) -> None:
        """A file that is whole as soon as it is there."""
        unfinished = self.folder / f".{name}.{os.getpid()}"
        unfinished.write_text(text)
        unfinished.replace(self.folder / name)

    def wait_for(self, *names: str) -> None:
        """Until other tasks (or the test) have written those files."""
        deadline = time.monotonic() + _GIVE_UP_S
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline, names
            time.sleep(0.01)


@dataclass(frozen=True)
class Note:
    """Writes its process, torch's threads and the object that it got, once others have written."""

    key: str
    then: tuple["Note | Dies", ...] = ()
    after: tuple[str, ...] = ()

    def run(self, shared: Inputs) -> "Sequence[Note | Dies]":
        shared.wait_for(*self.after)
        text = f"{os.getpid()} {torch.get_num_threads()} {id(shared)}"
        shared.write(self.key, text)
        return self.then


@dataclass(frozen=True)
class Dies:
    """Kills its worker the first `times`, each of them noted."""

    key: str
    times: int

    def run(self, shared: Inputs) -> "Sequence[Note]":
        deaths = len(list(shared.folder.glob(f"{self.key}.died*")))
        if deaths < self.times:
            (shared.folder / f"{self.key}.died{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (shared.folder / self.key).touch()
        return ()


@dataclass(frozen=True)
class Raises:
    """Raises one of the errors that a task may raise."""

    key: str
    kind: str = "checkpoint"

    def run(self, shared: Inputs) -> "Sequence[Note]":
        match self.kind:
            case "disk":
                raise OSError(28, "No space left on device", str(shared.folder))
            case "two":
                raise NeedsTwoError("left", "right")
        raise CheckpointError("a.weight is not there", allowed="all of them", hint="copy it again")


class NeedsTwoError(Exception):
    """Cannot be unpickled: its constructor gets one argument then."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


@dataclass(frozen=True)
class Where:
    """Notes its machine of a cluster, its process and its GPUs; ends once others are there too."""

    key: str
    meet: tuple[str, ...] = ()

    def run(self, shared: Inputs) -> "Sequence[Note]":
        import ray

        node = ray.get_runtime_context().get_node_id()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        shared.write(self.key, f"{node} {os.getpid()} {gpus}")
        shared.wait_for(*self.meet)
        return ()
