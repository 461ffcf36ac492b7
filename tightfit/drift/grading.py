r"""Grading of completions in DeepSeek-R1's format.

1. A completion that hit the token limit is *truncated*, whatever it says so far.
2. Only what follows `</think>` counts: a boxed guess within the reasoning is not an answer.
3. The answer is the content of the last `\boxed{...}` there, with balanced braces.
4. `math-verify` decides whether it equals the gold answer, both wrapped as inline LaTeX.

math-verify needs a process of its own: its own time limits use signals, which only work in the main
thread, and do not interrupt a big power or a regular expression. So each grader is a child process
(`grading_worker`) that is killed and replaced when an answer exceeds the time limit; that answer is
a *timeout*, apart from a wrong one.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from tightfit.errors import DriftError, MissingPackageError
from tightfit.runtimes.child import ChildProcess
from tightfit.runtimes.framing import Message

THINK_END = "</think>"
BOX = r"\boxed"
TIME_LIMIT_S = 10.0
"""For one answer; ordinary ones take milliseconds."""
START_LIMIT_S = 120.0
"""For importing sympy on a busy machine."""
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""sympy computes nothing in parallel; NumPy need not start threads under it."""
MAX_ANSWER_CHARS = 2000
"""A longer box is a model's loop, not an answer; MATH-500's longest is under 100."""


class Grade(StrEnum):
    """What a completion is worth."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """No `</think>`, or no box after it."""
    TRUNCATED = "truncated"
    """The token limit or the context ended it."""
    TIMEOUT = "timeout"
    """Comparing the answer exceeded the time or memory limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What is graded."""

    text: str
    """Completion with `</think>` written out, without the prompt."""
    finished: bool
    """Whether the model ended by itself."""
    gold: str
    """The right answer, LaTeX without delimiters."""


def extract_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` after the last `</think>`, or None."""
    _, marker, visible = text.rpartition(THINK_END)
    if not marker:
        return None
    start = visible.rfind(BOX)
    while start >= 0:
        content = _balanced(visible[start + len(BOX) :])
        if content is not None:
            return content
        start = visible.rfind(BOX, 0, start)
    return None


def _balanced(text: str) -> str | None:
    """What the braces that open `text` hold; None when they do not open it or never close."""
    text = text.lstrip()
    if not text.startswith("{"):
        return None
    depth = 0
    escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[1:index].strip() or None
    return None


def require_grader() -> None:
    """Raise `MissingPackageError` when math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise MissingPackageError(
            "grading needs the package math-verify, which is not installed",
            hint="install it: pip install 'tightfit[drift]'",
        )


class Grader:
    """A pool of grading processes; use it in a `with`."""

    def __init__(self, *, processes: int = 2, time_limit_s: float = TIME_LIMIT_S) -> None:
        """Start `processes` graders; raises `MissingPackageError` without math-verify."""
        require_grader()
        self._time_limit_s = time_limit_s
        self._idle: queue.SimpleQueue[_GradingProcess] = queue.SimpleQueue()
        self._all = [_GradingProcess() for _ in range(processes)]
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.stop()

    def grade(
        self,
        completions: Sequence[Completion],
        on_progress: Callable[[int, int], None] = lambda _completed, _total: None,
    ) -> list[Grade]:
        """Grades of completions, in their order."""
        grades = []
        with ThreadPoolExecutor(len(self._all)) as pool:
            for grade in pool.map(self._grade_one, completions):
                grades.append(grade)
                on_progress(len(grades), len(completions))
        return grades

    def _grade_one(self, completion: Completion) -> Grade:
        if not completion.finished:
            return Grade.TRUNCATED
        answer = extract_answer(completion.text)
        if answer is None:
            return Grade.NO_ANSWER
        if len(answer) > MAX_ANSWER_CHARS:
            return Grade.WRONG
        process = self._idle.get()
        try:
            reply = process.ask(completion.gold, answer, self._time_limit_s)
        finally:
            self._idle.put(process)
        if reply is None:
            return Grade.TIMEOUT
        return Grade.CORRECT if reply["equal"] else Grade.WRONG


class _GradingProcess:
    """One child; started when first asked, and again after it was killed."""

    def __init__(self) -> None:
        self._child: ChildProcess | None = None

    def ask(self, gold: str, answer: str, time_limit_s: float) -> Message | None:
        """The reply; None when the child took too long or died of the question."""
        child = self._child or self._start()
        child.send({"gold": gold, "answer": answer, "limit_s": time_limit_s})
        reply = _reply_of(child, time_limit_s)
        if reply is None:
            self.stop()
        return reply

    def stop(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _start(self) -> ChildProcess:
        child = ChildProcess("tightfit.drift.grading_worker", CHILD_ENVIRONMENT)
        if _reply_of(child, START_LIMIT_S) is None:
            log = child.log_text()
            child.stop()
            raise DriftError("the grading process did not start", hint=log)
        self._child = child
        return child


def _reply_of(child: ChildProcess, limit_s: float) -> Message | None:
    try:
        reply = child.receive(limit_s)
    except TimeoutError:
        return None
    return reply[0] if reply else None
