r"""A grading process: `{"gold", "answer", "limit_s"}` on stdin, `{"verdict"}` on stdout.

Says `{"ready": true}` once math-verify is imported. Its parent kills it when an answer takes too
long; should the parent be gone, an alarm does. Memory is limited here, because `9^{9^{9^9}}` can
fill a machine faster than that.
"""

import logging
import math
import os
import resource
import signal
import sys

from tightfit.runtimes.framing import receive, send

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space; sympy itself takes about 0.3 GiB."""
ALARM_GRACE_S = 2
"""The parent's own limit comes first, so that it sees its timeout."""


def is_equal(gold: str, answer: str) -> bool:
    """Whether math-verify finds `answer` equal to `gold`; both LaTeX without delimiters."""
    from math_verify import parse, verify

    # The parent limits the time: a soft limit within would turn a timeout into a wrong answer.
    parsed_gold = parse(f"${gold}$", parsing_timeout=None)
    parsed_answer = parse(f"$\\boxed{{{answer}}}$", parsing_timeout=None)
    return bool(verify(parsed_gold, parsed_answer, timeout_seconds=None))


def verdict_on(gold: str, answer: str) -> str:
    """`correct`, `wrong`, or `timeout` when the memory does not suffice.

    math-verify itself takes most failures within, memory among them, for a wrong answer.
    """
    try:
        return "correct" if is_equal(gold, answer) else "wrong"
    except MemoryError:
        return "timeout"


def main() -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    is_equal("1", "1")
    if sys.platform == "linux":  # elsewhere the address space cannot be limited
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    send(replies, {"ready": True})
    while (received := receive(sys.stdin.buffer)) is not None:
        request, _ = received
        # Without a handler the alarm ends the process even within one operation on a huge integer,
        # which no Python thread or handler could interrupt.
        signal.alarm(math.ceil(request["limit_s"]) + ALARM_GRACE_S)
        verdict = verdict_on(request["gold"], request["answer"])
        signal.alarm(0)
        send(replies, {"verdict": verdict})


if __name__ == "__main__":
    main()
