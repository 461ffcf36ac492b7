"""What the plan knows of a grid by its name, without loading the numeric core.

The integer and FP8 grids of `tightfit.quant`, as bits and group sizes: enough to count bytes and to
say which widths fit. The tests hold names and figures against the grids themselves.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PER_CHANNEL = 0
"""Group size that stands for one scale per row."""
GROUP_SIZES = (32, 64, 128)
FLOAT_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""Storage that is no grid."""
_BITS = range(2, 9)
_FP8_BLOCK = 128
_SHORT_INTEGER = re.compile(r"int\d+-(?:g\d+|channel)")
_SHORT_FLOAT8 = re.compile(r"fp8(?:-(tensor|channel|block128))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerFacts:
    """INT`bits` in groups of `group_size` columns."""

    bits: int
    group_size: int
    """0: one scale per row."""
    symmetric: bool

    @property
    def name(self) -> str:
        """As registered."""
        group = "channel" if self.group_size == PER_CHANNEL else f"g{self.group_size}"
        return f"int{self.bits}-{group}-{'sym' if self.symmetric else 'asym'}"

    def divides(self, width: int) -> bool:
        """Whether rows of that width can be stored."""
        return self.group_size == PER_CHANNEL or width % self.group_size == 0

    def n_groups(self, width: int) -> int:
        """Scales of a row."""
        return width // self.group_size if self.group_size else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Facts:
    """E4M3 with one float32 scale per tensor, per row, or per block."""

    name: str
    scale_per_row: bool
    block_columns: int
    """0: the whole row."""


INTEGERS: Mapping[str, IntegerFacts] = {
    facts.name: facts
    for facts in (
        IntegerFacts(bits=bits, group_size=group_size, symmetric=symmetric)
        for bits in _BITS
        for group_size in (*GROUP_SIZES, PER_CHANNEL)
        for symmetric in (True, False)
    )
}
"""By name."""
FLOAT8: Mapping[str, Float8Facts] = {
    facts.name: facts
    for facts in (
        Float8Facts(name="fp8-e4m3-tensor", scale_per_row=False, block_columns=0),
        Float8Facts(name="fp8-e4m3-channel", scale_per_row=True, block_columns=0),
        Float8Facts(name="fp8-e4m3-block128", scale_per_row=True, block_columns=_FP8_BLOCK),
    )
}
"""By name."""


def uniform_grid(text: str) -> str | None:
    """The integer or FP8 grid that a name in any case means; None: none.

    `int4-g128` is symmetric and `fp8` is per channel.
    """
    name = text.lower()
    if _SHORT_INTEGER.fullmatch(name):
        name += "-sym"
    if short := _SHORT_FLOAT8.fullmatch(name):
        name = f"fp8-e4m3-{short[1] or 'channel'}"
    return name if name in INTEGERS or name in FLOAT8 else None


def short_name(grid: str) -> str:
    """The shortest text in lower case that means the grid or float type."""
    return grid.lower().removesuffix("-sym").replace("fp8-e4m3", "fp8")
