"""Numbers as they are written on the page: a true minus, powers of ten, thin spaces."""

import math
from collections.abc import Sequence
from typing import Final

MINUS: Final = "−"
THOUSANDS: Final = "\N{NARROW NO-BREAK SPACE}"
SMALL: Final = 1e-3
"""Below this a power of ten reads better than zeros."""
LARGE: Final = 1e4
GIB_BYTES: Final = 2**30
MIB_BYTES: Final = 2**20
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """10⁻³."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits: 0.0431, 4.3 × 10⁻⁵, 12 500."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".replace("-", MINUS)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if SMALL <= abs(value) < LARGE:
        return f"{value:.{max(0, digits - 1 - power)}f}".replace("-", MINUS)
    return f"{mantissa}\u202f×\u202f{power_of_ten(power)}".replace("-", MINUS)


def count(value: int) -> str:
    """12 500."""
    return f"{value:,}".replace(",", THOUSANDS)


def fixed(value: float, decimals: int = 1, *, sign: bool = False) -> str:
    """A number with so many decimals."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", MINUS)


def percent(share: float, decimals: int = 1) -> str:
    """A share 0 to 1 as 93.8 %."""
    return f"{100 * share:.{decimals}f}\u202f%"


def interval(low: str, high: str) -> str:
    """[low, high]."""
    return f"[{low}, {high}]"


def numbers_interval(bounds: Sequence[float]) -> str:
    """An interval of numbers."""
    return interval(number(bounds[0]), number(bounds[1]))


def size(n_bytes: int) -> str:
    """4.36 GiB."""
    if n_bytes < GIB_BYTES:
        return f"{n_bytes / MIB_BYTES:.1f}\u202fMiB"
    return f"{n_bytes / GIB_BYTES:.2f}\u202fGiB"
