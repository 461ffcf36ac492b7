"""Damage for what strangers wrote: bytes turned, cut and inserted, and JSON with values exchanged.

A reader holds when it answers within the limit, with what is consistent or with a `TightfitError`.
"""

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tightfit.errors import TightfitError

Answer = TypeVar("Answer")

MESSAGE_CHARACTERS = 2000
"""More than a message has, paths included, and less than what a file can put into one."""
EXAMPLE_LIMIT_S = 5.0
"""Far above the milliseconds that a small file takes, also on a busy machine."""
FUZZ = settings(
    max_examples=250,
    deadline=None,  # `time_limit` ends a hang too, which a deadline only reports
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
VALUES: list[Any] = [
    *(None, True, False, "", "..", "../x", "/etc/passwd", "a\\b", "C:x", "\0", "\ud800", "\x1b[2J"),
    *(-1, 0, 1, 2**31, 2**32, 2**63, 2**64, 10**9, 10**30, 10**400, -(10**18)),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *([], {}, [[]], [None], {"a": {}}, [2**62, 2**62, 0], "x" * 100_000),
]
NUMBERS = [0, 1, 2, 3, 7, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
"""What a length, a count or an offset is made to be."""


@contextmanager
def time_limit(seconds: float = EXAMPLE_LIMIT_S) -> Iterator[None]:
    """Raise `TimeoutError` in what runs longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(read: Callable[[], Answer]) -> Answer | None:
    """What a reader gives within the limit; None where it refuses, in few words of ours."""
    try:
        with time_limit():
            return read()
    except TightfitError as error:
        message = str(error)
    assert len(message) < MESSAGE_CHARACTERS
    return None


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes, within: int | None = None) -> bytes:
    """The file with one to three changes, most of them in its first `within` bytes."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        end = max(1, min(len(data), within or len(data)))
        at = draw(st.integers(0, end - 1))
        match draw(st.sampled_from(["turn", "turn", "number", "number", "cut", "insert", "copy"])):
            case "turn":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                size = draw(st.sampled_from([4, 8]))
                value = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
                data[at : at + size] = value.to_bytes(size, "little")
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "copy":
                length = draw(st.integers(1, 64))
                data[at:at] = data[at : at + length]
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, whole: Any) -> str:
    """The document with one to three values exchanged, removed, renamed or there twice."""
    document = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _place(draw, document)
        if holder is None:
            return json.dumps(draw(st.sampled_from(VALUES)))
        match draw(st.sampled_from(["exchange", "exchange", "exchange", "remove", "nest", "move"])):
            case "exchange":
                holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "remove":
                del holder[key]
            case "nest":
                holder[key] = [holder[key]]
            case "move" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "..", "x", "\x1b", *map(str, holder)]))] = (
                    holder.pop(key)
                )
    return json.dumps(document)


def _place(draw: st.DrawFn, document: Any) -> tuple[Any, Any]:
    """Somewhere in the document: a container, and a key or index in it."""
    holder, key, value = None, None, document
    while isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        holder = value
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        value = value[key]
    return holder, key
