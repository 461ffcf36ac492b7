"""Answers survive an interruption, and damage is told."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tightfit.drift.answers import Answer
from tightfit.drift.grading import Grade
from tightfit.errors import DriftError
from tightfit.pipeline.drift.journal import Journal
from tightfit.runtimes.results import StopReason


def made(problem: int, text: str = "\u2028 a\n</think> \\boxed{1} é") -> Answer:
    return Answer(
        problem=problem,
        sample=0,
        token_ids=(1, 2, problem),
        text=text,
        stop=StopReason.END,
        grade=Grade.WRONG,
    )


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "answers.jsonl")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(journal.append, map(made, range(50))))
    again = Journal(tmp_path / "new" / "answers.jsonl")
    assert again.n_answers == 50
    assert [again.get(number, 0) for number in range(50)] == [made(number) for number in range(50)]
    assert again.get(50, 0) is None


def test_a_line_cut_short_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.append(made(number))
    whole = path.read_bytes()
    last_line = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 10, last_line - 1):
        path.write_bytes(whole[:-cut])
        again = Journal(path)
        assert again.n_answers == 2
        again.append(made(2))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{}\n", b"nonsense\n", b'{"problem": 1}\n', b"\xff\xfe\n"])
def test_damage_within_is_an_error_that_names_the_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.append(made(0))
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(DriftError, match="line 2 is no answer"):
        Journal(path)


def test_merging_adds_what_is_missing_only(tmp_path: Path) -> None:
    ours, theirs = Journal(tmp_path / "a.jsonl"), Journal(tmp_path / "b.jsonl")
    ours.append(made(0, "ours"))
    theirs.append(made(0, "theirs"))
    theirs.append(made(1))
    ours.merge((tmp_path / "b.jsonl").read_bytes().splitlines(), "b")
    kept = ours.get(0, 0)
    assert kept is not None
    assert kept.text == "ours"
    assert ours.get(1, 0) == made(1)
