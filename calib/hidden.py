"""Hidden states of the calibration sequences between two decoder blocks.

They are packed without padding, (total tokens, D) float32, in a memory-mapped file: the operating
system keeps what fits in memory, and an interrupted job finds them again. The process itself holds
no page longer than one call, so that its memory does not grow with the tokens.

Shape legend: B sequences of a batch, T padded length, D hidden width.
"""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tightfit.errors import CalibrationError

BATCH_TOKENS = 1024
"""Padded tokens of a batch at most: enough to keep the matrix units busy, little memory."""
_FLOAT32_BYTES = 4


class HiddenStates:
    """Packed hidden states in a file."""

    def __init__(self, path: Path, lengths: Sequence[int], width: int) -> None:
        """Open the file, or create it; raises `CalibrationError` when the disk has no room."""
        self.lengths = tuple(lengths)
        self.starts = tuple(torch.tensor((0, *lengths[:-1])).cumsum(0).tolist())
        shape = (sum(lengths), width)
        if not path.exists():
            _reserve(path, shape[0] * width * _FLOAT32_BYTES)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), shape[0] * width * _FLOAT32_BYTES)
        self._states_ND = torch.frombuffer(self._map, dtype=torch.float32).view(shape)

    def gather(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Sequences of the batch padded on the right, (B, T, D), and which tokens are real.

        Attention is causal, so padding on the right changes no real token.
        """
        longest = max(self.lengths[sample] for sample in batch)
        hidden_BTD = self._states_ND.new_zeros(len(batch), longest, self._states_ND.shape[1])
        real_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, sample in enumerate(batch):
            length = self.lengths[sample]
            start = self.starts[sample]
            hidden_BTD[row, :length] = self._states_ND[start : start + length]
            real_BT[row, :length] = True
        self._release()
        return hidden_BTD, real_BT

    def scatter(self, batch: Sequence[int], hidden_BTD: Tensor) -> None:
        """Store the real tokens of a padded batch."""
        for row, sample in enumerate(batch):
            length = self.lengths[sample]
            start = self.starts[sample]
            self._states_ND[start : start + length] = hidden_BTD[row, :length]
        self._release()

    def places(self, batch: Sequence[int]) -> Tensor:
        """int64 packed rows of a batch's real tokens, in the order of `gather(batch)[1]`."""
        spans = ((self.starts[sample], self.lengths[sample]) for sample in batch)
        return torch.cat([torch.arange(start, start + length) for start, length in spans])

    def rows(self, rows_T: Tensor | slice) -> Tensor:
        """float32 (T, D): some packed rows, copied."""
        states_TD = self._states_ND[rows_T]
        if isinstance(rows_T, slice):
            states_TD = states_TD.clone()
        self._release()
        return states_TD

    def store(self, rows_T: Tensor | slice, states_TD: Tensor) -> None:
        """Replace packed rows."""
        self._states_ND[rows_T] = states_TD
        self._release()

    def add(self, rows_T: Tensor, states_TD: Tensor) -> None:
        """Add to packed rows, none of them named twice."""
        self._states_ND[rows_T] += states_TD
        self._release()

    def flush(self) -> None:
        """Bring what was stored to the disk."""
        self._map.flush()

    def _release(self) -> None:
        """Unmap the pages, changed ones too; the system's cache of the file keeps them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _reserve(path: Path, size_bytes: int) -> None:
    """Create a file with all its blocks: a full disk must fail here, not as a bus error later."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            else:  # macOS has none: a sparse file, where a full disk cannot be foreseen
                file.truncate(size_bytes)
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CalibrationError(
            f"cannot store {size_bytes} bytes of hidden states in {path.parent}: {error.strerror}",
            hint="free some space, choose another folder with -o, or use fewer calibration samples",
        ) from error


def plan_batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Group sequences of similar length so that a padded batch stays within `batch_tokens`."""
    batches: list[list[int]] = []
    longest = 0
    for sample in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = lengths[sample]
        batches[-1].append(sample)
    return batches
