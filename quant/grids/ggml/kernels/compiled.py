"""What the kernels share: how they are compiled, and arithmetic in float32.

numba compiles them on first use and keeps the result on disk. Sums may be reordered (`reassoc`), so
that a loop over the weights of a sub-block becomes vector instructions; nothing else of fast-math
is allowed, since scales go through infinity and zero.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
INFINITE = np.float32(np.inf)
NEGLIGIBLE = np.float32(1e-30)
"""Far below what any float16 scale can express."""
HALF_LARGEST_EXPONENT = 16
"""2**16 and more is infinite in float16."""
HALF_LEAST_EXPONENT = -13
"""Of `frexp`: below 2**-14 numbers of float16 are multiples of 2**-24."""
HALF_DIGITS = 11


def compiled(function: Function) -> Function:
    """Compile on first use; sums may be reordered."""
    jit = numba.njit(
        fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True, nogil=True
    )
    return cast(Function, jit(function))


def inlined(function: Function) -> Function:
    """A part of what is `compiled`, always put into it.

    Where sums may be reordered, a function that is linked instead could come from another kernel,
    compiled in another context: then the process that compiles would round otherwise than those
    that find the kernels on disk.
    """
    return cast(Function, numba.njit(error_model="numpy", inline="always")(function))


def exact(function: Function) -> Function:
    """Compile on first use; operations stay in their order, wherever it is linked."""
    return cast(Function, numba.njit(error_model="numpy", cache=True, nogil=True)(function))


@exact
def reciprocal(value: np.float32) -> np.float32:
    """1 / value, and 0 where the value is 0 or so small that the quotient could overflow."""
    return ZERO if abs(value) < NEGLIGIBLE else ONE / value


@exact
def as_stored(value: np.float32) -> np.float32:
    """The nearest float16, ties to even; never 0 unless the value is, infinite beyond its range."""
    if value == ZERO or not np.isfinite(value):
        return value
    _, exponent = math.frexp(value)
    unit = max(exponent, HALF_LEAST_EXPONENT) - HALF_DIGITS
    stored = math.ldexp(np.rint(math.ldexp(value, -unit)), unit)
    if stored == 0.0:
        stored = math.copysign(math.ldexp(1.0, HALF_LEAST_EXPONENT - HALF_DIGITS), value)
    if abs(stored) >= math.ldexp(1.0, HALF_LARGEST_EXPONENT):
        stored = math.copysign(np.inf, value)
    return np.float32(stored)


@exact
def clamped(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """`value` between the two."""
    return low if value < low else high if value > high else value


@exact
def signed_extreme(values_N: "np.ndarray[Any, Any]") -> np.float32:
    """The value of largest magnitude, with its sign; of two the positive one."""
    low: np.float32 = values_N[0]
    high: np.float32 = values_N[0]
    for value in values_N:
        low, high = min(low, value), max(high, value)
    return low if -low > high else high
