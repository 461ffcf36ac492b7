"""Results in the order of the calls, whoever makes them."""

import threading
import time
from collections.abc import Callable

import pytest

from tightfit.threads import in_order


@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_is_that_of_the_calls(threads: int) -> None:
    def call(number: int) -> Callable[[], int]:
        def work() -> int:
            time.sleep(0.001 * (number % 3))
            return number

        return work

    assert list(in_order(map(call, range(40)), threads)) == list(range(40))


def test_calls_overlap_and_are_not_far_ahead() -> None:
    both = threading.Barrier(2, timeout=30)
    made: list[int] = []

    def call(number: int) -> Callable[[], int]:
        made.append(number)
        return lambda: both.wait()

    results = in_order(map(call, range(40)), 2)
    next(results)
    assert len(made) < 10
    assert len(list(results)) == 39


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_comes_in_its_turn_and_ends_the_rest(threads: int) -> None:
    begun: list[int] = []

    def call(number: int) -> Callable[[], int]:
        def work() -> int:
            begun.append(number)
            if number == 3:
                raise ValueError("three")
            return number

        return work

    results = in_order(map(call, range(100)), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 12
