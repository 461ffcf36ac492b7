"""What the formats have in common: a matrix stored in parts, found by their names.

A linear `x.weight` (O, I) is stored as `x` + one suffix a part: codes, scales, zero points, groups
of an act-order. Which linears are packed follows from the codes that are there, not from the
lists of a config: those are patterns of strangers, and a reader that finds codes needs none.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.calib.packed.bits import WORD_BITS
from tightfit.calib.packed.order import read_group_index
from tightfit.calib.packed.stored import StoredInteger
from tightfit.calib.safetensors_header import StoredTensor
from tightfit.errors import CheckpointError

WEIGHT = ".weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""What scales are stored in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a header must say of one part."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedScheme(ABC):
    """One format with one grid; how `quantization_config` describes a whole checkpoint."""

    codes: ClassVar[str]
    """Suffix of the part that holds the codes."""
    codes_dtype: ClassVar[torch.dtype]
    suffixes: ClassVar[tuple[str, ...]]
    """Of all parts."""
    order: ClassVar[str | None] = None
    """Suffix of the part that names the group of every column."""
    asymmetric: ClassVar[str]
    """How config.json says that zero points are free."""

    bits: int
    group_size: int
    """0: one scale per row."""
    symmetric: bool
    act_order: bool = False
    """Whether columns of a group need not be neighbours."""

    @property
    def grid(self) -> str:
        """Name of the grid, e.g. `int4-g128-sym`."""
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"int{self.bits}-{group}-{'sym' if self.symmetric else 'asym'}"

    @property
    @abstractmethod
    def multiples(self) -> tuple[int, int]:
        """What divides rows and columns of every matrix that the format holds."""

    @abstractmethod
    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I) of a matrix by the shape of its codes."""

    @abstractmethod
    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix, of a matrix (O, I); `multiples` and the group size divide it."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes uint8 (O, I), scales (O, G) and zero points uint8 (O, G) of parts by suffix."""

    def check(self, name: str, stored: StoredInteger) -> None:
        """Raise `CheckpointError` where a matrix is not what config.json says."""
        middle = 1 << (self.bits - 1)
        wrong = int((stored.zero_OG != middle).sum()) if self.symmetric else 0
        if wrong:
            raise CheckpointError(
                f"{name}: config.json says that it is symmetric, and {wrong} of "
                f"{stored.zero_OG.numel()} zero points are not {middle}",
                allowed=f"symmetric {self.bits}-bit integers have {middle} as zero point",
                hint=f"if the numbers are right, write {self.asymmetric} in quantization_config",
            )

    def unpack(self, name: str, parts: Mapping[str, Tensor]) -> StoredInteger:
        """A matrix of its parts by suffix; raises `CheckpointError` as `check` does."""
        codes_OI, scale_OG, zero_OG = self.decode(parts)
        index_I = None if self.order is None else parts.get(self.order)
        stored = StoredInteger(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            codes_OI=codes_OI,
            scale_OG=scale_OG,
            zero_OG=zero_OG,
            group_index_I=read_group_index(
                name, index_I, self.group_size, act_order=self.act_order
            ),
        )
        self.check(name, stored)
        return stored

    def part_name(self, name: str, suffix: str) -> str:
        """Stored name of a part of a logical weight."""
        return name.removesuffix(WEIGHT) + suffix

    def holds(self, name: str, stored: Mapping[str, StoredTensor]) -> bool:
        """Whether the weight of this logical name is packed."""
        codes = stored.get(self.part_name(name, self.codes))
        # Where codes have the name of a float weight, their type tells them apart.
        return codes is not None and (self.codes != WEIGHT or codes.dtype == self.codes_dtype)

    def weight_name(self, part: str, stored: Mapping[str, StoredTensor]) -> str | None:
        """Logical name of the packed weight that a stored tensor is a part of."""
        for suffix in self.suffixes:
            if part.endswith(suffix):
                name = part.removesuffix(suffix) + WEIGHT
                return name if self.holds(name, stored) else None
        return None

    def n_groups(self, n_columns: int) -> int:
        """Scales of a row."""
        return n_columns // self.group_size if self.group_size else 1

    @property
    def codes_per_cycle(self) -> int:
        """Codes that end at a 32-bit word together."""
        return WORD_BITS // math.gcd(self.bits, WORD_BITS)

    def n_words(self, n_codes: int) -> int:
        """32-bit words of so many codes."""
        return math.ceil(n_codes * self.bits / WORD_BITS)

    def middle_zeros(self, scale_OG: Tensor) -> Tensor:
        """uint8 (O, G): the zero points that a symmetric grid has and need not store."""
        return torch.full(scale_OG.shape, 1 << (self.bits - 1), dtype=torch.uint8)
