r"""Grading of completions in DeepSeek-R1's format.

1. A completion that hit the token limit is *truncated*, whatever it says so far.
2. Only what follows `</think>` counts: a boxed guess within the reasoning is not an answer.
3. The answer is the content of the last `\boxed{...}` there, with balanced braces.
4. `math-verify` decides whether it equals the gold answer, both wrapped as inline LaTeX.

math-verify needs a process of its own: its own time limits use signals, which only work in the main
thread, and do not interrupt a big power or a regular expression. So each grader is a child process
(`grading_worker`) that is killed and replaced when an answer exceeds the time limit; that answer is
a *timeout*, apart from a wrong one. When the process ends by itself, or is killed from outside, the
answer is asked once more of a new one, and then counted as *ungraded*.
"""

import queue
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from tightfit.errors import DriftError, MissingPackageError
from tightfit.runtimes.child import ChildProcess
from tightfit.runtimes.framing import Message

THINK_END = "</think>"
BOX = re.compile(r"\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or an escaped character, which is none."""
TIME_LIMIT_S = 10.0
"""For one answer; ordinary ones take milliseconds."""
START_LIMIT_S = 120.0
"""For importing sympy on a busy machine."""
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""sympy computes nothing in parallel; NumPy need not start threads under it."""
ATTEMPTS = 2
"""One more when the grading process was killed from outside, for example for memory."""
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
    """Comparing the answer exceeded the time limit, or the memory where math-verify says so."""
    UNGRADED = "ungraded"
    """The grading process ended twice while it compared, killed from outside or by the answer."""


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
    r"""The content of the last `\boxed{...}` after the last `</think>`, or None.

    One pass: a model that loops over `\boxed{` for 32,768 tokens takes no longer than others.
    """
    _, marker, visible = text.rpartition(THINK_END)
    if not marker:
        return None
    box_braces = {box.end() - 1 for box in BOX.finditer(visible)}
    open_braces: list[int] = []
    last_brace, answer = -1, None
    for brace in BRACE.finditer(visible):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif brace[0] == "}" and open_braces:
            opened = open_braces.pop()
            content = visible[opened + 1 : brace.start()] if opened in box_braces else ""
            if opened > last_brace and not content.isspace() and content:
                last_brace, answer = opened, content.strip()
    return answer


def require_grader() -> None:
    """Raise `MissingPackageError` when math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise MissingPackageError(
            "grading needs the package math-verify, which is not installed",
            hint="install it: pip install 'tightfit[drift]'",
        )


class Grader:
    """A pool of grading processes, started when first needed; use it in a `with`."""

    def __init__(self, *, processes: int = 2, time_limit_s: float = TIME_LIMIT_S) -> None:
        """Of up to `processes` graders; raises `MissingPackageError` without math-verify."""
        require_grader()
        self._time_limit_s = time_limit_s
        self._idle: queue.SimpleQueue[_GradingProcess] = queue.SimpleQueue()
        self._all = [_GradingProcess() for _ in range(processes)]
        for process in self._all:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="grader")

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
        """End the processes, after the answers under way; those not yet begun are cancelled."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.stop()

    def submit(self, completion: Completion) -> Future[Grade]:
        """Grade one completion while others are generated.

        The future raises `DriftError` when no grading process can be started.
        """
        return self._threads.submit(self._grade_one, completion)

    def grade(
        self,
        completions: Sequence[Completion],
        on_progress: Callable[[int, int], None] = lambda _completed, _total: None,
    ) -> list[Grade]:
        """Grades of completions, in their order; `on_progress` gets how many are done, of all."""
        futures = [self.submit(completion) for completion in completions]
        grades = []
        for future in futures:
            grades.append(future.result())
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
            return process.compare(completion.gold, answer, self._time_limit_s)
        finally:
            self._idle.put(process)


class _GraderDiedError(Exception):
    """A child ended while it was asked."""


class _GradingProcess:
    """One child; started when first asked, and again after it ended."""

    def __init__(self) -> None:
        self._child: ChildProcess | None = None

    def compare(self, gold: str, answer: str, time_limit_s: float) -> Grade:
        """CORRECT, WRONG, TIMEOUT, or UNGRADED when every attempt ended the child."""
        for _ in range(ATTEMPTS):
            try:
                verdict = self._ask(gold, answer, time_limit_s)["verdict"]
            except TimeoutError:
                self.stop()
                return Grade.TIMEOUT
            except _GraderDiedError:
                self.stop()
            else:
                return Grade(verdict)
        return Grade.UNGRADED

    def stop(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _ask(self, gold: str, answer: str, time_limit_s: float) -> Message:
        child = self._child or self._start()
        child.send({"gold": gold, "answer": answer, "limit_s": time_limit_s})
        reply = child.receive(time_limit_s)
        if reply is None:
            raise _GraderDiedError
        return reply[0]

    def _start(self) -> ChildProcess:
        child = ChildProcess("tightfit.drift.grading_worker", CHILD_ENVIRONMENT)
        try:
            ready = child.receive(START_LIMIT_S)
        except TimeoutError:
            ready = None
        if ready is None:
            log = child.log_text()
            child.stop()
            raise DriftError("the grading process did not start", hint=log)
        self._child = child
        return child
