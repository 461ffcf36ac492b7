"""Grading rules, math-verify in its processes, and answers that would hang or fill the machine."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tightfit.drift import grading_worker
from tightfit.drift.data.subset import load_subset, parse_spec
from tightfit.drift.grading import Completion, Grade, Grader, extract_answer
from tightfit.errors import DriftError, MissingPackageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
MATH500 = SHARED / "math500.jsonl"
GSM8K = SHARED / "gsm8k_test.jsonl"
TIME_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def grader():
    with Grader(time_limit_s=TIME_LIMIT_S) as pool:
        yield pool


@pytest.fixture(scope="module")
def impatient():
    with Grader(processes=1, time_limit_s=1.0) as pool:
        pool.grade([completion(r"</think>\boxed{7}")])
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


def slowly_extracted(text):
    """The definition, word for word: every box, each scanned for its closing brace."""
    _, marker, visible = text.rpartition("</think>")
    found = None
    for start in range(len(visible) if marker else 0):
        after = visible[start:].removeprefix("\\boxed")
        if len(after) == len(visible) - start or not after.lstrip().startswith("{"):
            continue
        after = after.lstrip()
        depth = end = 0
        while end < len(after):
            depth += {"{": 1, "}": -1}.get(after[end], 0)
            if depth == 0:
                found = after[1:end].strip() or found
                break
            end += 2 if after[end] == "\\" else 1
    return found


PIECES = st.sampled_from(["\\boxed", "{", "}", "\\", " ", "1", "\\{", "\\}", "</think>"])


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map(lambda pieces: "</think>" + "".join(pieces)))
@example("</think>\\boxed{1}\\boxed{\\boxed{2}")
@example("</think>\\boxed{1\\boxed{2}}")
@example("</think>}\\\\boxed{1\\\\}")
def test_extraction_is_the_slow_definition(text):
    assert extract_answer(text) == slowly_extracted(text)


@pytest.mark.parametrize(
    "loop",
    [
        r"\boxed{" * 300_000,
        r"\boxed{}" * 200_000,
        "{" * 1_000_000 + "}" * 1_000_000,
        "\\" * 2_000_000,
        r"\boxed" + " " * 2_000_000,
    ],
    ids=["opens", "empty", "braces", "backslashes", "spaces"],
)
def test_megabytes_of_loop_have_no_answer_soon(grader, loop):
    start = time.monotonic()
    assert grader.grade([completion("</think>" + loop)]) == [Grade.NO_ANSWER]
    assert time.monotonic() - start < 10  # the quadratic way takes hours


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
        ("073", "73", Grade.CORRECT),  # AIME's answer sheet has three digits
        ("73", "073", Grade.CORRECT),
        ("000", "0", Grade.CORRECT),
        ("073", "37", Grade.WRONG),
        ("073", "730", Grade.WRONG),
        ("1450000", "1,450,000", Grade.CORRECT),
        ("1450000", "1{,}450{,}000", Grade.CORRECT),
        ("18", r"\$18", Grade.CORRECT),
        ("18", r"18 \text{ dollars}", Grade.CORRECT),
        ("-10", "10", Grade.WRONG),
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


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("(" * 900 + "1" + ")" * 900, id="parentheses"),
        pytest.param("10^{10^{10}}", id="tower"),
        pytest.param(
            r"\begin{pmatrix}" + r" \\ ".join(["1&2&3&4&5&6&7&8"] * 80) + r"\end{pmatrix}",
            id="matrix",
        ),
        pytest.param("1" * 1990, id="digits"),
        pytest.param("1" * 3_000_000, id="megabytes"),
        pytest.param("\0\ud800", id="no text"),
        pytest.param(r"\begin{cases} 1 \\", id="open environment"),
        pytest.param("((((9!)!)!)!)", id="factorials", marks=pytest.mark.slow),
        pytest.param(r"\binom{10^{9}}{5^{12}}", id="binomial", marks=pytest.mark.slow),
        pytest.param(r"\frac{1}{" * 150 + "2" + "}" * 150, id="nested", marks=pytest.mark.slow),
        pytest.param("-" * 1500 + "1", id="minus signs", marks=pytest.mark.slow),
    ],
)
def test_a_catastrophic_answer_is_wrong_or_times_out(impatient, answer):
    hostile, right = completion(rf"</think>\boxed{{{answer}}}"), completion(r"</think>\boxed{7}")
    grades = impatient.grade([hostile, right])
    assert grades[0] in (Grade.WRONG, Grade.TIMEOUT)
    assert grades[1] is Grade.CORRECT


def test_too_little_memory_is_a_timeout(monkeypatch):
    def is_equal(gold, answer):
        raise MemoryError

    assert grading_worker.verdict_on("7", "7") == Grade.CORRECT
    assert grading_worker.verdict_on("7", "8") == Grade.WRONG
    monkeypatch.setattr(grading_worker, "is_equal", is_equal)
    assert grading_worker.verdict_on("7", "7") == Grade.TIMEOUT


RIGHT = completion(r"</think>\boxed{7}")
ENDLESS = completion(r"</think>\boxed{9^{9^{9^{9}}}}")


def kill(grader, *, unlike=None):
    """Kill the grading process, once there is one of another id than `unlike`."""
    deadline = time.monotonic() + 60
    while (child := grader._all[0]._child) is None or child.pid == unlike:
        assert time.monotonic() < deadline, "no grading process was started"
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    return child.pid


def test_a_killed_process_is_replaced_and_asked_again():
    with Grader(processes=1, time_limit_s=30) as pool:
        assert pool.grade([RIGHT]) == [Grade.CORRECT]
        first = kill(pool)
        assert pool.grade([RIGHT]) == [Grade.CORRECT]
        assert pool._all[0]._child.pid != first


def test_what_ends_every_process_is_ungraded_and_the_pool_goes_on():
    with Grader(processes=1, time_limit_s=60) as pool:
        future = pool.submit(ENDLESS)
        kill(pool, unlike=kill(pool))
        assert future.result() is Grade.UNGRADED
        assert pool.grade([RIGHT]) == [Grade.CORRECT]


def test_nothing_starts_before_it_is_needed_and_closing_cancels_the_rest():
    with Grader(processes=1, time_limit_s=0.5) as pool:
        assert pool.submit(completion("no answer")).result() is Grade.NO_ANSWER
        assert pool._all[0]._child is None
        under_way, waiting = pool.submit(ENDLESS), pool.submit(RIGHT)
        while not under_way.running():
            time.sleep(0.01)
    assert under_way.result() is Grade.TIMEOUT
    with pytest.raises(CancelledError):
        waiting.result()


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


def golds(path):
    if not path.is_file():
        pytest.skip(f"../shared/data/{path.name} is absent")
    return [problem.answer for problem in load_subset(parse_spec(str(path))).problems]


@pytest.mark.parametrize(("path", "n"), [(MATH500, 500), (GSM8K, 1319)], ids=["math500", "gsm8k"])
def test_every_gold_answer_equals_itself(grader, path, n):
    """All of them, through our own grader: there are no exceptions to list."""
    answers = golds(path)
    boxed = [completion(f"...</think>\n\\boxed{{{answer}}}", answer) for answer in answers]
    grades = grader.grade(boxed)
    pairs = zip(answers, grades, strict=True)
    assert [answer for answer, grade in pairs if grade is not Grade.CORRECT] == []
    assert len(grades) == n


def test_every_solution_of_math500_is_correct(grader):
    if not MATH500.is_file():
        pytest.skip("../shared/data/math500.jsonl is absent")
    problems = [json.loads(line) for line in MATH500.read_text().splitlines()]
    seen = []
    by_solution = [completion("</think>" + each["solution"], each["answer"]) for each in problems]
    grades = grader.grade(by_solution, lambda done, total: seen.append((done, total)))
    wrong = [p["answer"] for p, g in zip(problems, grades, strict=True) if g is not Grade.CORRECT]
    assert wrong == []
    assert seen == [(done, 500) for done in range(1, 501)]
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
