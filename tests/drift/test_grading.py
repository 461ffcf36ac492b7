"""Grading rules, math-verify in its processes, and answers that would hang or fill the machine."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tightfit.drift.grading import Completion, Grade, Grader, extract_answer
from tightfit.errors import DriftError, MissingPackageError

MATH500 = Path(__file__).parents[3] / "shared" / "data" / "math500.jsonl"
TIME_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def grader():
    with Grader(time_limit_s=TIME_LIMIT_S) as pool:
        yield pool


def completion(text, gold="7", *, finished=True):
    return Completion(text=text, finished=finished, gold=gold)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"1 + 1</think>The answer is $\boxed{2}$.", "2"),
        (r"</think>\boxed{1} no, \boxed{2}", "2"),
        (r"</think>\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"</think>\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"</think>\boxed{\left( 3, \frac{\pi}{2} \right)}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"</think>\boxed {5}", "5"),
        (r"</think>\boxed{2} then \boxed{3", "2"),
        (r"</think>\boxed{a\\}", r"a\\"),
        (r"\boxed{1}</think> nothing", None),
        (r"<think>a guess \boxed{7}", None),
        (r"</think>\boxed{}", None),
        (r"</think>\boxed 5", None),
        (r"</think>\boxed{1}</think>\boxed{2}", "2"),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_rules(grader):
    cases = {
        Grade.CORRECT: completion(r"x</think>It is $\boxed{7}$."),
        Grade.WRONG: completion(r"\boxed{7}</think>It is $\boxed{8}$."),
        Grade.NO_ANSWER: completion(r"<think>It is $\boxed{7}$."),
        Grade.TRUNCATED: completion(r"x</think>It is $\boxed{7}$.", finished=False),
    }
    assert grader.grade(list(cases.values())) == list(cases)


@pytest.mark.parametrize(
    ("gold", "answer", "grade"),
    [
        (r"\frac{1}{2}", "0.5", Grade.CORRECT),
        (r"\frac{14}{3}", r"14/3", Grade.CORRECT),
        ("118", "118.0", Grade.CORRECT),
        ("118", "119", Grade.WRONG),
        (r"\frac{1}{2}", r"\frac{2}{1}", Grade.WRONG),
        ("-3", "3", Grade.WRONG),
        ("x^2+2x+1", "(x+1)^2", Grade.CORRECT),
        (r"\{1,2\}", r"\{2,1\}", Grade.CORRECT),
        ("7", r"\text{I do not know}", Grade.WRONG),
        ("7", "{{{", Grade.NO_ANSWER),
    ],
)
def test_equality(grader, gold, answer, grade):
    assert grader.grade([completion(rf"</think>\boxed{{{answer}}}", gold)]) == [grade]


def test_an_endless_answer_times_out_and_the_next_is_graded(grader):
    endless = completion(r"</think>\boxed{9^{9^{9^{9}}}}")
    right = completion(r"</think>\boxed{7}")
    start = time.monotonic()
    grades = grader.grade([endless, right, endless, right])
    assert grades == [Grade.TIMEOUT, Grade.CORRECT, Grade.TIMEOUT, Grade.CORRECT]
    assert time.monotonic() - start < 60


def test_no_orphan_when_the_parent_dies_within_an_endless_answer():
    script = (
        "import os, threading, time\n"
        "from tightfit.drift.grading import Completion, Grader\n"
        "grader = Grader(processes=1, time_limit_s=1)\n"
        "easy = Completion(text='</think>\\\\boxed{7}', finished=True, gold='7')\n"
        "endless = Completion(text='</think>\\\\boxed{9^{9^{9}}}', finished=True, gold='7')\n"
        "assert grader.grade([easy]) == ['correct']\n"
        "print(grader._all[0]._child.pid, flush=True)\n"
        "threading.Thread(target=grader.grade, args=([endless],), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    status = Path(f"/proc/{int(run.stdout)}/status")
    deadline = time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "the grading process outlived its parent"
        time.sleep(0.1)


def test_a_looping_model_is_wrong_at_once(grader):
    start = time.monotonic()
    assert grader.grade([completion(r"</think>\boxed{" + "1+" * 5000 + "1}")]) == [Grade.WRONG]
    assert time.monotonic() - start < TIME_LIMIT_S


def test_every_gold_answer_of_math500_is_correct(grader):
    if not MATH500.is_file():
        pytest.skip("../shared/data/math500.jsonl is absent")
    problems = [json.loads(line) for line in MATH500.read_text().splitlines()]
    seen = []
    by_solution = [completion("</think>" + each["solution"], each["answer"]) for each in problems]
    grades = grader.grade(by_solution, lambda done, total: seen.append((done, total)))
    wrong = [p["answer"] for p, g in zip(problems, grades, strict=True) if g is not Grade.CORRECT]
    assert wrong == []
    assert seen[-1] == (500, 500)
    # The same graders do say no: each answer against the next problem's gold.
    shifted = [
        completion(rf"</think>\boxed{{{after['answer']}}}", before["answer"])
        for before, after in pairwise(problems[:100])
    ]
    assert grader.grade(shifted).count(Grade.CORRECT) < 5


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("tightfit.drift.grading.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"tightfit\[drift\]"):
        Grader()


def test_a_grader_that_cannot_start_is_an_error(monkeypatch):
    with Grader(processes=1) as broken:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DriftError, match="did not start"):
            broken.grade([completion(r"</think>\boxed{7}")])
