"""Loops and repetition against slow references and texts that nearly are one."""

import random
import time
from collections import Counter

import pytest

from tightfit.drift.measures import loops
from tightfit.drift.measures.loops import ends_in_loop, repetition, z_function

SENTENCE = "Wait, let me check that again: 3x + 4 = 19 gives x = 5. "
OPENING = "<think>\nFirst I move 4 to the other side, which leaves 3x = 15 and so x = 5.\n"


def slow_loop(text):
    """By trying every period and comparing characters one by one."""
    for period in range(1, len(text) + 1):
        length = period
        while length < len(text) and text[-1 - length] == text[-1 - length + period]:
            length += 1
        if length >= loops.LOOP_CHARACTERS and length >= loops.LOOP_REPEATS * period:
            return True
    return False


def slow_repetition(text, n):
    words = text.split()
    seen = Counter()
    repeats = 0
    for start in range(len(words) - n + 1):
        gram = " ".join(words[start : start + n])
        repeats += seen[gram] > 0
        seen[gram] += 1
    return repeats / seen.total() if seen else 0.0


LOOPS = {
    "sentence": OPENING + SENTENCE * 4,
    "cut short": OPENING + SENTENCE * 30 + SENTENCE[:17],
    "one character": OPENING + "!" * 200,
    "one word": OPENING + "Hmm " * 50,
    "a long block": OPENING + (OPENING + SENTENCE + "Alternatively, take 19 - 4.\n") * 4,
    "decimals": "1/7 = 0." + "142857" * 34,
    "nothing else": SENTENCE * 4,
}
NEAR_MISSES = {
    "empty": "",
    "short": "42",
    "three times": OPENING + SENTENCE * 3,
    "short and four times": OPENING + "I see. " * 4,
    "199 characters": OPENING + "!" * 199,
    "left again": OPENING + SENTENCE * 30 + "</think>\nSo the answer is \\boxed{5}.",
    "a counter in it": OPENING + "".join(f"Step {k}: add {k}. Then go on.\n" for k in range(200)),
    "a table of numbers": "".join(f"{k} & {k * k} & {k**3} \\\\\n" for k in range(1, 90)),
    "a table of few digits": "".join(
        " ".join(str((row * column) % 3) for column in range(40)) + "\n" for row in range(1, 4)
    ),
    "long and new": " ".join(str(3**k) for k in range(200)),
    "copies apart": "".join(SENTENCE + f"Now {k}. " for k in range(40)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_found(name):
    assert slow_loop(LOOPS[name])
    assert ends_in_loop(LOOPS[name])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_none(name):
    assert not slow_loop(NEAR_MISSES[name])
    assert not ends_in_loop(NEAR_MISSES[name])


def test_random_texts_equal_the_slow_reference(monkeypatch):
    monkeypatch.setattr(loops, "LOOP_CHARACTERS", 16)
    randomly = random.Random(0)
    found = 0
    for _ in range(4000):
        block = "".join(randomly.choices("ab", k=randomly.randint(1, 8)))
        text = "".join(randomly.choices("ab", k=randomly.randint(0, 30)))
        text += (block * 8)[: randomly.randint(0, 40)]
        expected = slow_loop(text)
        found += expected
        assert ends_in_loop(text) == expected, text
    assert 500 < found < 3500


def test_z_function_equals_its_definition():
    randomly = random.Random(1)
    for _ in range(300):
        text = "".join(randomly.choices("ab", k=randomly.randint(1, 40)))
        expected = [
            next(
                (k for k in range(len(text) - i) if text[k] != text[i + k]),
                len(text) - i,
            )
            for i in range(1, len(text))
        ]
        assert z_function(text)[1:] == expected


@pytest.mark.parametrize("n", [2, 20])
def test_repetition_equals_a_slow_count(n, monkeypatch):
    monkeypatch.setattr(loops, "REPETITION_WORDS", n)
    randomly = random.Random(2)
    shares = []
    for _ in range(100):
        words = [randomly.choice(["so", "x", "=", "2"]) for _ in range(randomly.randint(0, 60))]
        text = " ".join(words * randomly.randint(1, 3))
        shares.append(repetition(text))
        assert shares[-1] == pytest.approx(slow_repetition(text, n))
    assert min(shares) == 0
    assert max(shares) > 0.5


def test_repetition_of_known_texts():
    distinct = " ".join(str(k) for k in range(100))
    assert repetition(distinct) == 0
    assert repetition("x " * 19) == 0  # no 20-gram at all
    assert repetition("x " * 119) == pytest.approx(0.99)
    # Twice the same 100 words: 181 20-grams, 81 of them again.
    assert repetition(f"{distinct} {distinct}") == pytest.approx(81 / 181)


@pytest.mark.parametrize(
    "text",
    [SENTENCE * 2000 + "End.", OPENING + SENTENCE * 2000, "a" * 120_000, "ab" * 60_000 + "c"],
)
def test_the_longest_answers_take_well_under_a_second(text):
    start = time.process_time()
    ends_in_loop(text)
    repetition(text)
    assert time.process_time() - start < 2
