"""Numbers as the card writes them, in plain characters that can be copied and searched."""

from collections.abc import Sequence
from typing import Final

_KIB: Final = 2**10
_MIB: Final = 2**20
_GIB: Final = 2**30
_SMALL: Final = 1e-2
"""Below this a power of ten reads better than zeros."""


def figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def share(value: float, decimals: int = 1) -> str:
    """A share 0 to 1 as 93.8%."""
    return f"{100 * value:.{decimals}f}%"


def interval(low: str, high: str) -> str:
    """` (low to high)`, behind the figure itself."""
    return f" ({low} to {high})"


def small(value: float, bounds: Sequence[float] | None = None) -> str:
    """A figure that may be tiny, with its interval in the same notation."""
    pattern = ".1e" if abs(value) < _SMALL else ".3f"
    ends = [format(bound, pattern) for bound in bounds or ()]
    return format(value, pattern) + (interval(*ends) if ends else "")


def size(n_bytes: int) -> str:
    """4.36 GiB."""
    if n_bytes < _MIB:
        return f"{n_bytes / _KIB:.1f} KiB"
    if n_bytes < _GIB:
        return f"{n_bytes / _MIB:.1f} MiB"
    return f"{n_bytes / _GIB:.2f} GiB"


def count(n: int, unit: str) -> str:
    """`1 trace`, `64 traces`."""
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"
