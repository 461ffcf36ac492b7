"""The stratified draw against its definition, on real and on random strata."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightfit.drift.data.problem import Problem
from tightfit.drift.data.stratify import allocate, draw, seeded_key

# MATH-500's, which has 35 strata of 2 to 36 problems.
MATH500_SIZES = [36, 30, 30, 26, 23, 21, 20, 19, 19, 19, 19, 17, 17, 16, 15, 13, 13, 13, 13]
MATH500_SIZES += [12, 12, 12, 12, 10, 10, 8, 8, 7, 7, 7, 5, 4, 3, 2, 2]


def problems(sizes, *, shuffle=0):
    made = [
        Problem(
            unique_id=f"{stratum}/{index}",
            problem="?",
            answer="!",
            level=stratum % 5 + 1,
            subject=str(stratum // 5),
            original={},
        )
        for stratum, size in enumerate(sizes)
        for index in range(size)
    ]
    random.Random(shuffle).shuffle(made)
    return made


def strata(chosen):
    return Counter((each.level, each.subject) for each in chosen)


def test_largest_remainders_by_hand():
    # Quotas of 10 out of 100: 4.7, 3.2, 2.1. Whole parts 4, 3, 2; the one left goes to .7.
    sizes = {(1, ""): 47, (2, ""): 32, (3, ""): 21}
    assert allocate(sizes, 10, seed=0) == {(1, ""): 5, (2, ""): 3, (3, ""): 2}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_every_stratum_has_its_quota(sizes, data):
    total = sum(sizes)
    n = data.draw(st.integers(0, total))
    counts = allocate({(None, str(index)): size for index, size in enumerate(sizes)}, n, seed=3)
    assert sum(counts.values()) == n
    quotas = [Fraction(n * size, total) for size in sizes]
    rest = {index: quota - int(quota) for index, quota in enumerate(quotas)}
    raised = {i for i, q in enumerate(quotas) if counts[None, str(i)] == int(q) + 1}
    kept = {i for i, q in enumerate(quotas) if counts[None, str(i)] == int(q)}
    assert len(raised) + len(kept) == len(sizes)
    assert min((rest[i] for i in raised), default=1) >= max((rest[i] for i in kept), default=0)


def test_ties_are_the_seeds():
    sizes = {(None, str(index)): 10 for index in range(6)}
    winners = {
        tuple(stratum for stratum, count in allocate(sizes, 2, seed).items() if count)
        for seed in range(200)
    }
    assert len(winners) == 15  # every pair of six


@pytest.mark.parametrize("n", [1, 16, 64, 499, 500])
def test_a_draw_of_math500s_strata(n):
    source = problems(MATH500_SIZES)
    chosen = draw(source, n, seed=0)
    assert len(chosen) == n
    places = [source.index(each) for each in chosen]
    assert places == sorted(places)
    sizes = strata(source)
    assert all(abs(count - n * sizes[key] / 500) < 1 for key, count in strata(chosen).items())


def test_the_order_of_the_source_does_not_matter():
    ids = [
        sorted(each.unique_id for each in draw(problems(MATH500_SIZES, shuffle=seed), 64, 0))
        for seed in (0, 1)
    ]
    assert ids[0] == ids[1]


def test_within_a_stratum_draws_are_nested():
    source = problems([60, 40])
    previous = set()
    for n in range(101):
        now = {each.unique_id for each in draw(source, n, seed=5)}
        assert previous <= now  # two strata: an allocation never falls
        previous = now


def test_the_alabama_paradox_is_the_exception_to_nesting():
    sizes = {(1, ""): 6, (2, ""): 6, (3, ""): 2}
    assert list(allocate(sizes, 10, seed=0).values()) == [4, 4, 2]
    assert list(allocate(sizes, 11, seed=0).values()) == [5, 5, 1]


def test_every_problem_of_a_stratum_is_as_likely():
    source = problems([20])
    n_seeds, n = 1000, 5
    drawn = Counter(each.unique_id for seed in range(n_seeds) for each in draw(source, n, seed))
    expected = n_seeds * n / 20
    # Chi-squared with 19 degrees of freedom: 43.8 is its 99.9th percentile, and seeds are fixed.
    assert sum((count - expected) ** 2 for count in drawn.values()) / expected < 43.8
    assert len(drawn) == 20


def test_purposes_are_independent():
    keys = {seeded_key(seed, purpose, "x") for seed in (0, 1) for purpose in ("draw", "visit")}
    assert len(keys) == 4
