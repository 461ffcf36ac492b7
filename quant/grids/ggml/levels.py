"""Level tables: the fixed numbers that a code stands for before scale and offset.

Two kinds occur in ggml: consecutive integers, and the 16-entry codebook of IQ4. Both find the
nearest level of a whole tensor in a few passes; the codebook does so by a table over half-integer
cells, which is exact because the midpoint of two integers is a multiple of one half.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tightfit.quant.grids.ggml.kernels.weigh import Array


class Levels(ABC):
    """Integer levels in ascending order; the code of a level is its index."""

    @property
    @abstractmethod
    def low(self) -> int:
        """Smallest level."""

    @property
    @abstractmethod
    def high(self) -> int:
        """Largest level."""

    @abstractmethod
    def kernel_table(self) -> tuple[np.float32, np.float32, Array]:
        """Smallest and largest level, and the rises (R, 2) of a codebook (`kernels.symmetric`)."""

    @abstractmethod
    def nearest_(self, t: Tensor) -> Tensor:
        """Replace each float32 value by the nearest level, in place."""

    @abstractmethod
    def code(self, t: Tensor) -> Tensor:
        """uint8 code of the level nearest to each float32 value; infinities saturate."""

    @abstractmethod
    def value(self, codes: Tensor) -> Tensor:
        """float32 level of each code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformLevels(Levels):
    """Every integer from `first` to `last`."""

    first: int
    last: int

    @property
    def low(self) -> int:
        """Smallest level."""
        return self.first

    @property
    def high(self) -> int:
        """Largest level."""
        return self.last

    def kernel_table(self) -> tuple[np.float32, np.float32, Array]:
        """Without rises."""
        return np.float32(self.first), np.float32(self.last), np.empty((0, 2), np.float32)

    def nearest_(self, t: Tensor) -> Tensor:
        """Replace each value by the nearest level, in place."""
        return t.round_().clamp_(self.first, self.last)

    def code(self, t: Tensor) -> Tensor:
        """uint8 code of the nearest level."""
        return t.round().clamp_(self.first, self.last).sub_(self.first).to(torch.uint8)

    def value(self, codes: Tensor) -> Tensor:
        """float32 level of each code."""
        return codes.to(torch.float32) + self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookLevels(Levels):
    """A short ascending table of integers."""

    values: tuple[int, ...]

    @property
    def low(self) -> int:
        """Smallest level."""
        return self.values[0]

    @property
    def high(self) -> int:
        """Largest level."""
        return self.values[-1]

    def kernel_table(self) -> tuple[np.float32, np.float32, Array]:
        """Each rise with the middle above which the next level is nearer."""
        steps = pairwise(self.values)
        rises_R2 = np.array([((low + high) / 2, high - low) for low, high in steps], np.float32)
        return np.float32(self.low), np.float32(self.high), rises_R2

    def nearest_(self, t: Tensor) -> Tensor:
        """Replace each value by the nearest level, in place."""
        return t.copy_(self.value(self.code(t)))

    def code(self, t: Tensor) -> Tensor:
        """uint8 code of the nearest level."""
        cells = (t.clamp(self.low, self.high) - self.low).mul_(2).to(torch.int32)
        table = _code_of_cell(self.values, t.device)
        return table.index_select(0, cells.reshape(-1)).reshape(t.shape)

    def value(self, codes: Tensor) -> Tensor:
        """float32 level of each code."""
        table = _level_of_code(self.values, codes.device)
        return table.index_select(0, codes.reshape(-1).to(torch.int32)).reshape(codes.shape)


@lru_cache
def _level_of_code(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


@lru_cache
def _code_of_cell(values: tuple[int, ...], device: torch.device) -> Tensor:
    """uint8 code of the level nearest to every t in [low + cell/2, low + (cell+1)/2)."""
    middles = [(values[0] + 0.5 * cell + 0.25) for cell in range(2 * (values[-1] - values[0]) + 1)]
    codes = [min(range(len(values)), key=lambda i: abs(values[i] - t)) for t in middles]
    return torch.tensor(codes, dtype=torch.uint8, device=device)
