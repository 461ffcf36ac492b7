"""Answers as they come: one JSON line each, appended and flushed.

An interruption can cut the last line at most; it is dropped when the journal is opened again. A
line that is damaged anywhere else is an error: nothing is skipped silently.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from tightfit.drift.answers import Answer
from tightfit.drift.grading import Grade
from tightfit.errors import DriftError
from tightfit.records import parse_json
from tightfit.runtimes.results import StopReason

NAME = "answers.jsonl"


class Journal:
    """The answers of one model; `append` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises `DriftError` when it is damaged."""
        self._path = path
        self._lock = threading.Lock()
        self._answers: dict[tuple[int, int], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    @property
    def n_answers(self) -> int:
        """Answers that are there."""
        return len(self._answers)

    def get(self, problem: int, sample: int) -> Answer | None:
        """The answer, if it is there."""
        return self._answers.get((problem, sample))

    def append(self, answer: Answer) -> None:
        """Add an answer and write it through to the file."""
        line = _line(answer).encode()
        # Unbuffered: one write, which other processes that append here cannot interrupt.
        with self._lock, self._path.open("ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            self._answers[answer.problem, answer.sample] = answer

    def sorted_bytes(self) -> bytes:
        """The file in the order of the problems: equal answers are then equal bytes."""
        return "".join(_line(self._answers[pair]) for pair in sorted(self._answers)).encode()

    def merge(self, lines: Iterable[bytes], where: str) -> None:
        """Add answers of another journal that this one lacks."""
        for number, line in enumerate(lines, 1):
            answer = _parse(line, f"{where}, line {number}")
            if self.get(answer.problem, answer.sample) is None:
                self.append(answer)

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("rb+") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            answer = _parse(line, f"{self._path}, line {number}")
            self._answers[answer.problem, answer.sample] = answer


def _line(answer: Answer) -> str:
    fields = {
        "problem": answer.problem,
        "sample": answer.sample,
        "stop": answer.stop.value,
        "grade": answer.grade.value,
        "text": answer.text,
        "token_ids": answer.token_ids,
    }
    return json.dumps(fields) + "\n"


def _parse(line: bytes, where: str) -> Answer:
    try:
        fields = parse_json(line)
        return Answer(
            problem=int(fields["problem"]),
            sample=int(fields["sample"]),
            token_ids=tuple(map(int, fields["token_ids"])),
            text=str(fields["text"]),
            stop=StopReason(fields["stop"]),
            grade=Grade(fields["grade"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DriftError(
            f"{where} is no answer: {type(error).__name__}: {error}",
            allowed="a line for each answer, as `tightfit drift` wrote it",
            hint="restore the file, or delete it to have its answers generated again",
        ) from error
