"""Work in threads, its results in order: for what spends its time outside of Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_WAITING_PER_THREAD = 2
"""Finished results that may wait for a slower one before them."""


def in_order(calls: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """The results in the order of the calls, of which a few are ahead in other threads.

    With one thread each call is made when its result is asked for. Raises what a call raises, when
    its turn comes; calls that have not begun by then are never made.
    """
    if threads == 1:
        for call in calls:
            yield call()
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) >= threads * _WAITING_PER_THREAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
