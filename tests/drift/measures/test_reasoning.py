"""The health of answers on constructed ones, and the length ratio against scipy."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.grading import Grade
from tightfit.drift.measures.loops import repetition
from tightfit.drift.measures.reasoning import (
    LengthUnit,
    Reasoning,
    assess,
    compare_reasoning,
)
from tightfit.records import build
from tightfit.runtimes.results import StopReason

ENGLISH, CHINESE = "What is $2+2$?", "求 $2+2$ 的值。"
GOOD = "Two and two make four.\n</think>\nThe answer is \\boxed{4}."
LOOP = "Two and two. " + "Wait, let me check this once more. " * 20


def problems_of(*texts):
    return [
        Problem(unique_id=str(index), problem=text, answer="4", original={})
        for index, text in enumerate(texts)
    ]


def answers_of(*given, samples=1):
    """From (text, stop, number of tokens)."""
    return ModelAnswers(
        samples=samples,
        answers=tuple(
            Answer(
                problem=index // samples,
                sample=index % samples,
                token_ids=tuple(range(n_tokens)),
                text=text,
                stop=stop,
                grade=Grade.WRONG,
            )
            for index, (text, stop, n_tokens) in enumerate(given)
        ),
    )


def ended(n_tokens):
    return (GOOD, StopReason.END, n_tokens)


def cut(n_tokens):
    return (GOOD, StopReason.LENGTH, n_tokens)


def test_each_share_counts_its_own_answers():
    answers = answers_of(
        (GOOD, StopReason.END, 20),
        ("It is 4.", StopReason.END, 5),
        (LOOP, StopReason.LENGTH, 300),
        (GOOD, StopReason.CONTEXT, 20),
        ("所以答案是四。\n</think>\n\\boxed{4}", StopReason.END, 15),
        ("所以答案是四。\n</think>\n\\boxed{4}", StopReason.END, 30),
        (GOOD, StopReason.END, 0),
        (GOOD, StopReason.END, 10),
        samples=2,
    )
    # The two answers in Chinese are to the third problem's two samples.
    health = assess(answers, problems_of(ENGLISH, ENGLISH, ENGLISH, CHINESE), LengthUnit.TOKENS)
    assert health.n_answers == 8
    assert health.unclosed == 2 / 8
    assert health.truncated == 2 / 8
    assert health.looping == 1 / 8
    assert health.mixing == 2 / 8
    assert health.repetition == pytest.approx(repetition(LOOP) / 8)
    assert repetition(LOOP) > 0.8
    assert health.mean_tokens == pytest.approx(400 / 8)
    in_chinese = assess(answers, problems_of(ENGLISH, ENGLISH, CHINESE, ENGLISH), LengthUnit.TOKENS)
    assert in_chinese.mixing == 0


def test_a_long_answer_is_not_a_sick_one():
    text = "".join(f"Case {k}: {k} squared is {k * k}, too small.\n" for k in range(3000))
    health = assess(
        answers_of((text + "</think>\n\\boxed{4}", StopReason.END, 32_000)), problems_of(ENGLISH)
    )
    assert (health.looping, health.repetition, health.unclosed, health.truncated) == (0, 0, 0, 0)


def test_the_length_ratio_is_paired_and_equals_students_interval():
    baseline = answers_of(*map(ended, (100, 50, 10, 800)), cut(8000), ended(30))
    artifact = answers_of(*map(ended, (120, 80, 10, 700)), ended(40), cut(8000))
    problems = problems_of(*[ENGLISH] * 6)
    reasoning = compare_reasoning(baseline, artifact, problems)
    logs = np.log([121 / 101, 81 / 51, 1, 701 / 801])
    assert reasoning.length_ratio == pytest.approx(np.exp(logs.mean()))
    expected = stats.ttest_1samp(logs, 0).confidence_interval(0.9)
    assert reasoning.length_ratio_interval == pytest.approx(
        (np.exp(expected.low), np.exp(expected.high))
    )
    assert reasoning.baseline.mean_tokens == pytest.approx((100 + 50 + 10 + 800 + 8000 + 30) / 6)
    assert reasoning.baseline.length_unit is LengthUnit.TOKENS


def test_samples_of_a_problem_are_one_cluster():
    """Samples that say the same twice do not make the interval narrower."""
    pairs = [(100, 120), (50, 80), (10, 10), (800, 700)]
    once = compare_reasoning(
        answers_of(*(ended(one) for one, _ in pairs)),
        answers_of(*(ended(other) for _, other in pairs)),
        problems_of(*[ENGLISH] * 4),
    )
    twice = compare_reasoning(
        answers_of(*(ended(one) for one, _ in pairs for _ in range(2)), samples=2),
        answers_of(*(ended(other) for _, other in pairs for _ in range(2)), samples=2),
        problems_of(*[ENGLISH] * 4),
    )
    assert twice.length_ratio == pytest.approx(once.length_ratio)
    assert twice.length_ratio_interval == pytest.approx(once.length_ratio_interval)


def test_no_pair_that_ended_has_no_ratio():
    reasoning = compare_reasoning(
        answers_of(ended(10), cut(90)), answers_of(cut(90), ended(10)), problems_of("a", "b")
    )
    assert (reasoning.length_ratio, reasoning.length_ratio_interval) == (None, None)


def test_one_pair_has_no_interval():
    reasoning = compare_reasoning(answers_of(ended(9)), answers_of(ended(19)), problems_of("a"))
    assert reasoning.length_ratio == pytest.approx(2)
    assert reasoning.length_ratio_interval is None


def test_empty_answers_have_a_length():
    reasoning = compare_reasoning(
        answers_of(("", StopReason.END, 0), ("", StopReason.END, 0)),
        answers_of(ended(9), ("", StopReason.END, 0)),
        problems_of("a", "b"),
    )
    assert reasoning.length_ratio == pytest.approx(10**0.5)
    assert reasoning.baseline.length_unit is LengthUnit.TOKENS


def test_text_without_tokens_is_counted_in_words_on_both_sides():
    reasoning = compare_reasoning(
        answers_of(ended(500), ended(500)),
        answers_of((GOOD, StopReason.END, 0), (GOOD + " So four.", StopReason.END, 0)),
        problems_of("a", "b"),
    )
    words = len(GOOD.split())
    assert reasoning.baseline.length_unit is reasoning.artifact.length_unit is LengthUnit.WORDS
    assert reasoning.baseline.mean_tokens == words
    assert reasoning.artifact.mean_tokens == words + 1
    assert reasoning.length_ratio == pytest.approx(((words + 3) / (words + 1)) ** 0.5)
    alone = assess(answers_of((GOOD, StopReason.END, 0)), problems_of("a"))
    assert (alone.length_unit, alone.mean_tokens) == (LengthUnit.WORDS, words)


def test_it_comes_back_from_json():
    reasoning = compare_reasoning(
        answers_of(ended(10), ended(90)), answers_of(ended(12), ended(95)), problems_of("a", "b")
    )
    text = json.dumps(dataclasses.asdict(reasoning), allow_nan=False)
    assert build(Reasoning, json.loads(text)) == reasoning
