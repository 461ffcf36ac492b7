"""Hidden states in a job's folder: each file is whole or absent."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tightfit.calib.hidden import HiddenStates
from tightfit.errors import ArtifactError


class StateFiles:
    """Memory-mapped files of packed states, renamed once every sequence is in them."""

    def __init__(self, folder: Path, width: int) -> None:
        """Create the folder where it is not there yet; `width` is that of the hidden states."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._width = width

    def has_states(self, name: str) -> bool:
        """Whether those states are whole."""
        return self._states_file(name).exists()

    def states(self, name: str, lengths: Sequence[int]) -> HiddenStates:
        """Finished states; raises `ArtifactError` when the file was cut since."""
        path = self._states_file(name)
        size_bytes = sum(lengths) * self._width * np.dtype(np.float32).itemsize
        if path.stat().st_size != size_bytes:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes",
                allowed=f"{size_bytes}, as it was written",
                hint="the disk is failing: delete this file and run the same command again",
            )
        return HiddenStates(self._states_file(name), lengths, self._width)

    @contextmanager
    def new_states(self, name: str, lengths: Sequence[int]) -> Iterator[HiddenStates]:
        """States to be filled; finished when the block ends well."""
        path = self._states_file(name)
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        states = HiddenStates(unfinished, lengths, self._width)
        yield states
        states.flush()
        unfinished.replace(path)

    def drop_states(self, name: str) -> None:
        """Free the room of states that nothing needs again."""
        self._states_file(name).unlink(missing_ok=True)

    def _states_file(self, name: str) -> Path:
        return self._folder / f"{name}.f32"
