"""A stratified draw: every level and subject with its share, the same on every machine.

The quota of a stratum s of N_s problems in a draw of n out of N is q_s = n N_s / N. Each gets
floor(q_s), and what is left goes one each to the largest fractional parts (the method of largest
remainders, Hamilton's), so every stratum gets floor(q_s) or ceil(q_s). Equal fractions are ordered
by the seed.

Within a stratum problems are ordered by SHA-256 of the seed and their unique id, and the first are
drawn. So the draw depends on neither the order of the source nor Python's generator, and with one
seed a larger n keeps what a smaller one drew of each stratum, unless that stratum's allocation
falls, which largest remainders may do by one (the Alabama paradox).
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from tightfit.drift.data.problem import Problem

Stratum = tuple[int | None, str]
"""Level and subject."""


def draw(problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """`n` of the problems, at most all of them, in their given order."""
    assert 0 <= n <= len(problems)
    strata: dict[Stratum, list[Problem]] = defaultdict(list)
    for problem in problems:
        strata[problem.level, problem.subject].append(problem)
    sizes = {stratum: len(members) for stratum, members in strata.items()}
    drawn: set[str] = set()
    for stratum, count in allocate(sizes, n, seed).items():
        members = sorted(strata[stratum], key=lambda each: seeded_key(seed, "draw", each.unique_id))
        drawn.update(member.unique_id for member in members[:count])
    return [problem for problem in problems if problem.unique_id in drawn]


def allocate(sizes: dict[Stratum, int], n: int, seed: int) -> dict[Stratum, int]:
    """How many of the `n` each stratum gets, by largest remainders."""
    total = sum(sizes.values())
    counts = {stratum: n * size // total for stratum, size in sizes.items()}
    by_remainder = sorted(
        sizes,
        key=lambda each: (-(n * sizes[each] % total), seeded_key(seed, "allocate", repr(each))),
    )
    for stratum in by_remainder[: n - sum(counts.values())]:
        counts[stratum] += 1
    return counts


def seeded_key(seed: int, purpose: str, name: str) -> bytes:
    """A sort key that is random to look at; draws for other purposes are independent of it."""
    return hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).digest()
