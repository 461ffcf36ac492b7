"""Rows to problems: the three schemas, and rows that are refused."""

import json
import math
import re
from pathlib import Path

import pytest

from tightfit.drift.data.problem import Problem
from tightfit.drift.data.rows import Row, read_rows
from tightfit.drift.data.schemas import AIME, MATH, problems_of
from tightfit.errors import DriftError

SHARED = Path(__file__).parents[4] / "shared" / "data"
PLAIN = {"problem": "1+1?", "answer": "2"}


def problems(*entries, schema=None):
    rows = [Row(where=f"line {number}", fields=each) for number, each in enumerate(entries, 1)]
    return problems_of(rows, origin="some.jsonl", schema=schema)


def shared(name):
    if not (SHARED / name).is_file():
        pytest.skip(f"../shared/data/{name} is absent")
    return SHARED / name


def test_math500_keeps_every_field():
    path = shared("math500.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    found = problems_of(read_rows(path), origin="math500", schema=MATH)
    assert found == [
        Problem(
            unique_id=each["unique_id"],
            problem=each["problem"],
            answer=each["answer"],
            solution=each["solution"],
            subject=each["subject"],
            level=each["level"],
            original=each,
        )
        for each in entries
    ]
    assert len(found) == 500


def test_gsm8k_has_whole_numbers_as_answers():
    path = shared("gsm8k_test.jsonl")
    found = problems_of(read_rows(path), origin="gsm8k", schema=None)
    assert [each.unique_id for each in found] == [f"gsm8k/{index}" for index in range(1319)]
    assert all(re.fullmatch(r"-?\d+", each.answer) for each in found)
    raw = [each.original["answer"].split("####")[1] for each in found]
    assert [each.answer for each in found] == [text.strip().replace(",", "") for text in raw]
    assert sum("," in text for text in raw) == 14
    assert all(each.solution + "\n####" in each.original["answer"] for each in found)
    assert {(each.level, each.subject) for each in found} == {(None, "")}


def test_aime_is_told_by_its_year():
    row = {
        "id": 60,
        "problem": "Every morning Aya ...",
        "solution": "...",
        "answer": "204",
        "url": "https://artofproblemsolving.com/wiki/index.php/2024_AIME_I_Problems/Problem_1",
        "year": "2024",
    }
    (found,) = problems(row)
    assert (found.unique_id, found.answer, found.original) == ("aime24/60", "204", row)
    assert problems({**row, "year": 2025, "answer": 73}) == problems(
        {**row, "year": 2025, "answer": 73}, schema=AIME
    )
    (later,) = problems({**row, "year": 2025, "answer": 73})
    assert (later.unique_id, later.answer) == ("aime25/60", "73")


def test_ids_and_optional_fields():
    first, second = problems(PLAIN, {**PLAIN, "level": "", "subject": None, "solution": ""})
    assert (first.unique_id, second.unique_id) == ("row/0", "row/1")
    assert (second.level, second.subject, second.solution) == (None, "", "")
    assert problems({**PLAIN, "id": 7})[0].unique_id == "7"
    assert problems({**PLAIN, "id": 7, "unique_id": "x"})[0].unique_id == "x"
    assert problems({**PLAIN, "type": "Algebra"})[0].subject == "Algebra"


@pytest.mark.parametrize("level", [5, "5", "Level 5"])
def test_levels(level):
    assert problems({**PLAIN, "level": level})[0].level == 5


@pytest.mark.parametrize("level", ["Level ?", 0, -1, 2.5, True, "hard", [5], "Level 05"])
def test_other_levels_are_refused(level):
    with pytest.raises(DriftError, match=re.escape(f"line 1: level is {level!r}")):
        problems({**PLAIN, "level": level})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": None}, "answer is None, not text"),
        ({"answer": ""}, "answer is empty"),
        ({"answer": " \n"}, "answer is empty"),
        ({"answer": ["2"]}, "answer is ['2'], not text"),
        ({"answer": True}, "answer is True, not text"),
        ({"answer": math.nan}, "answer is nan, not text"),
        ({"problem": {"text": "?"}}, "problem is {'text': '?'}, not text"),
        ({"problem": "\ud800"}, "problem holds half a surrogate pair"),
        ({"solution": 1j}, "solution is 1j, not text"),
        ({"unique_id": None}, "unique_id is None, not text"),
    ],
)
def test_unusable_fields_are_named(change, says):
    with pytest.raises(DriftError) as caught:
        problems(PLAIN, {**PLAIN, **change}, schema=MATH)
    assert f"some.jsonl, line 2: {says}" in str(caught.value)
    assert "problem, answer" in caught.value.allowed


def test_missing_fields_are_named():
    with pytest.raises(DriftError, match="line 2: the field answer is missing"):
        problems(PLAIN, {"problem": "?"})
    with pytest.raises(DriftError, match=r"line 1: the fields prompt, gold are not those"):
        problems({"prompt": "?", "gold": "!"})
    with pytest.raises(DriftError, match="line 1: the field year is missing"):
        problems(PLAIN, schema=AIME)


@pytest.mark.parametrize("answer", ["18", "so 18 ####", "so 18 #### \n"])
def test_gsm8k_without_its_mark(answer):
    with pytest.raises(DriftError, match="line 1: answer does not end in ####"):
        problems({"question": "?", "answer": answer})


@pytest.mark.parametrize(
    ("written", "gold"),
    [("1,450,000", "1450000"), ("-1,000", "-1000"), ("1,2", "1,2"), ("1,23456", "1,23456")],
)
def test_only_thousands_commas_go(written, gold):
    assert problems({"question": "?", "answer": f"x #### {written}"})[0].answer == gold


def test_copies_and_nothing_are_refused():
    with pytest.raises(DriftError, match="line 3: the id 'a' is that of line 1 too"):
        problems({**PLAIN, "id": "a"}, {**PLAIN, "id": "b"}, {**PLAIN, "id": "a"})
    with pytest.raises(DriftError, match=r"some\.jsonl: holds no problem"):
        problems()
