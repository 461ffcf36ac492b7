"""How many bytes the allocator may spend."""

import math
from dataclasses import dataclass

from tightfit.errors import UsageError

_GIB = 1 << 30
_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A limit that the user sets; without one, what the target has room for."""

    file_gib: float | None = None
    """Tensor data of the file, with what aligns it."""
    bits_per_weight: float | None = None
    """Over all tensors."""

    @property
    def is_room(self) -> bool:
        """Whether the target alone sets the limit."""
        return self.file_gib is None and self.bits_per_weight is None

    @property
    def text(self) -> str:
        """The option as it was given."""
        if self.file_gib is not None:
            return f"--budget-gib {self.file_gib!r}"
        return "" if self.bits_per_weight is None else f"--bpw {self.bits_per_weight!r}"

    def limit_bytes(self, n_parameters: int) -> int:
        """Bytes of a limit that the user set."""
        if self.file_gib is not None:
            return int(self.file_gib * _GIB)
        assert self.bits_per_weight is not None, "the room of a target is no number of bytes"
        return int(self.bits_per_weight * n_parameters / _BITS_PER_BYTE)


def check_budget(budget: Budget) -> None:
    """Raise `UsageError` for a limit that is none, or two of them."""
    if budget.file_gib is not None and budget.bits_per_weight is not None:
        raise UsageError(
            "--budget-gib and --bpw limit the same bytes",
            allowed="one of the two",
            hint="leave one out",
        )
    for option, value in (("--budget-gib", budget.file_gib), ("--bpw", budget.bits_per_weight)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(
                f"{option} {value:g} is not a size", allowed="a number above 0", hint="leave it out"
            )
