"""The allocator against enumeration, a dynamic program, and the bound of the linear program."""

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from tightfit.errors import UsageError
from tightfit.targets.allocation.option import Allocation, Option
from tightfit.targets.allocation.solve import allocate

BITS_AND_NOISE = {
    "Q2_K": (2.625, 5.3e-2),
    "Q3_K": (3.4375, 1.8e-2),
    "IQ4_XS": (4.25, 4.7e-3),
    "Q4_K": (4.5, 4.0e-3),
    "Q4_0": (4.5, 5.9e-3),
    "IQ4_NL": (4.5, 4.6e-3),
    "Q4_1": (5.0, 3.9e-3),
    "Q5_0": (5.5, 1.4e-3),
    "Q5_K": (5.5, 1.0e-3),
    "Q5_1": (6.0, 9.0e-4),
    "Q6_K": (6.5625, 2.2e-4),
    "Q8_0": (8.5, 2.0e-5),
}
SHAPES = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336))

Options = Mapping[str, Sequence[Option]]


def option(stored_as: str, n_bytes: int, loss_nats: float) -> Option:
    return Option(stored_as=stored_as, n_bytes=n_bytes, loss_nats=loss_nats)


def realistic(n_tensors: int, seed: int, *, equal_layers: bool = False) -> dict[str, list[Option]]:
    """Tensors of real sizes whose sensitivities span six orders of magnitude."""
    generator = random.Random(seed)

    def factor() -> float:
        return 1.0 if equal_layers else generator.uniform(0.8, 1.2)

    found = {}
    for index in range(n_tensors):
        role = index % len(SHAPES)
        rows, width = SHAPES[role]
        scale = 10.0 ** (-role if equal_layers else generator.uniform(-6, 0))
        found[f"tensor{index}"] = [
            option(name, int(rows * width * bits / 8), scale * noise * factor())
            for name, (bits, noise) in BITS_AND_NOISE.items()
        ]
    return found


def small_case(seed: int) -> tuple[dict[str, list[Option]], int]:
    """A few tensors with awkward bytes and losses from 1e-9 to 1, and a budget."""
    generator = random.Random(seed)
    options = {
        f"t{index}": [
            option(f"g{place}", generator.randrange(1, 2000), 10 ** generator.uniform(-9, 0))
            for place in range(generator.randrange(1, 5))
        ]
        for index in range(generator.randrange(1, 7))
    }
    least, most = limits(options)
    return options, generator.randrange(least, most + 10)


def limits(options: Options) -> tuple[int, int]:
    least = sum(min(way.n_bytes for way in ways) for ways in options.values())
    return least, sum(max(way.n_bytes for way in ways) for ways in options.values())


def check_honest(options: Options, found: Allocation, budget_bytes: int) -> None:
    """The figures of an allocation are those of its storage, within the budget."""
    assert list(found.storage) == list(options)
    chosen = [
        next(way for way in options[name] if way.stored_as == stored_as)
        for name, stored_as in found.storage.items()
    ]
    assert found.n_bytes == sum(way.n_bytes for way in chosen) <= budget_bytes
    assert found.predicted_nats == pytest.approx(sum(way.loss_nats for way in chosen), rel=1e-12)
    assert found.budget_bytes == budget_bytes


def enumerated_loss(options: Options, budget_bytes: int) -> float:
    return min(
        sum(way.loss_nats for way in ways)
        for ways in itertools.product(*options.values())
        if sum(way.n_bytes for way in ways) <= budget_bytes
    )


@pytest.mark.parametrize("seed", range(150))
def test_enumeration_finds_nothing_better(seed: int) -> None:
    options, budget_bytes = small_case(seed)
    found = allocate(options, budget_bytes)
    check_honest(options, found, budget_bytes)
    assert found.predicted_nats == pytest.approx(
        enumerated_loss(options, budget_bytes), rel=2e-6, abs=0
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_dynamic_program_finds_nothing_better(seed: int) -> None:
    generator = random.Random(seed)
    options = {
        f"t{index}": [
            option(f"g{bits}", bits * size, 4.0**-bits * 10 ** generator.uniform(-3, 0))
            for bits in range(2, 9)
        ]
        for index, size in enumerate(generator.choices(range(3, 60), k=25))
    }
    least, most = limits(options)
    budget_bytes = generator.randrange(least, most)
    best = np.zeros(budget_bytes + 1)  # least loss of the tensors so far within that many bytes
    for ways in options.values():
        shifted = np.full((len(ways), budget_bytes + 1), np.inf)
        for row, way in zip(shifted, ways, strict=True):
            row[way.n_bytes :] = best[: budget_bytes + 1 - way.n_bytes] + way.loss_nats
        best = shifted.min(axis=0)
    found = allocate(options, budget_bytes)
    check_honest(options, found, budget_bytes)
    assert found.predicted_nats == pytest.approx(best[-1], rel=2e-6, abs=0)


def relaxed_loss(options: Options, budget_bytes: int) -> float:
    """Optimum of the linear program, from SciPy, in well-scaled figures."""
    ways = [(index, way) for index, each in enumerate(options.values()) for way in each]
    scale = max(way.loss_nats for _, way in ways)
    solution = linprog(
        [way.loss_nats / scale for _, way in ways],
        A_ub=[[way.n_bytes / budget_bytes for _, way in ways]],
        b_ub=[1.0],
        A_eq=np.array([[index == row for index, _ in ways] for row in range(len(options))]),
        b_eq=np.ones(len(options)),
        bounds=(0, 1),
    )
    return float(solution.fun) * scale


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_large_problems_come_close_to_the_relaxation(share: float) -> None:
    options = realistic(120, seed=3)
    least, most = limits(options)
    budget_bytes = int(least + share * (most - least))
    found = allocate(options, budget_bytes)
    check_honest(options, found, budget_bytes)
    bound = relaxed_loss(options, budget_bytes)
    # The linear program's own tolerance is 1e-6 of the largest loss.
    tolerance = 1e-6 * max(way.loss_nats for ways in options.values() for way in ways)
    assert bound - tolerance <= found.predicted_nats <= bound * 1.002


@pytest.mark.parametrize("equal_layers", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.13, 0.3, 0.42, 0.6, 0.77, 0.93])
def test_the_budget_is_spent(share: float, equal_layers: bool) -> None:
    options = realistic(192, seed=5, equal_layers=equal_layers)
    least, most = limits(options)
    budget_bytes = int(least + share * (most - least))
    found = allocate(options, budget_bytes)
    check_honest(options, found, budget_bytes)
    # Every tensor can take more, and the smallest step is far below 1 % of the budget.
    assert found.n_bytes >= 0.99 * budget_bytes


def test_exact_budgets_are_used_to_the_byte() -> None:
    options = realistic(60, seed=7)
    for share in (0.1, 0.4, 0.8):
        least, most = limits(options)
        first = allocate(options, int(least + share * (most - least)))
        again = allocate(options, first.n_bytes)
        assert again.n_bytes == first.n_bytes
        assert again.predicted_nats == pytest.approx(first.predicted_nats, rel=2e-6)


def test_the_smallest_and_the_largest_budget() -> None:
    options = realistic(20, seed=1)
    least, most = limits(options)
    assert set(allocate(options, least).storage.values()) == {"Q2_K"}
    for budget_bytes in (most, 10 * most):
        found = allocate(options, budget_bytes)
        assert set(found.storage.values()) == {"Q8_0"}
        assert found.n_bytes == most


def test_what_no_byte_can_improve_stays_small() -> None:
    ways = [option("small", 100, 0.5), option("large", 200, 0.5), option("bad", 300, 0.6)]
    found = allocate({"a": ways, "b": ways}, 1000)
    assert dict(found.storage) == {"a": "small", "b": "small"}


def test_tensors_that_cost_nothing_get_the_best() -> None:
    ways = [option("Q2_K", 0, 0.5), option("Q8_0", 0, 0.1), option("Q6_K", 0, 0.2)]
    assert dict(allocate({"table": ways}, 0).storage) == {"table": "Q8_0"}


def test_a_budget_below_the_smallest_names_it() -> None:
    options = {"a": [option("x", 700, 0.1)], "b": [option("x", 800, 0.1), option("y", 900, 0.0)]}
    with pytest.raises(UsageError) as caught:
        allocate(options, 1499)
    assert "1,499" in caught.value.problem
    assert "1,500 bytes" in caught.value.allowed


def test_a_shared_type_is_shared() -> None:
    def ways(loss: float, names: str) -> list[Option]:
        return [
            option(name, 100 * (place + 1), loss * 4.0**-place) for place, name in enumerate(names)
        ]

    options = {"k": ways(1.0, "xyz"), "free": ways(0.9, "xyz"), "v": ways(0.1, "xyz")}
    alone = allocate(options, 600)
    assert dict(alone.storage) == {"k": "z", "free": "y", "v": "x"}
    # Together k and v cost 200 a step: (y, y) for them and y for the other is what 600 buys best.
    together = allocate(options, 600, shared=[("k", "v")])
    assert dict(together.storage) == {"k": "y", "free": "y", "v": "y"}
    assert together.predicted_nats == pytest.approx((1.0 + 0.9 + 0.1) / 4)


@pytest.mark.parametrize("seed", range(40))
def test_shared_types_against_enumeration(seed: int) -> None:
    generator = random.Random(seed)
    options = {
        f"t{index}": [
            option(f"g{place}", generator.randrange(1, 500), 10 ** generator.uniform(-5, 0))
            for place in range(3)
        ]
        for index in range(5)
    }
    shared = [("t0", "t3"), ("t3", "t4")]  # overlapping groups are one
    allowed = [
        ways
        for ways in itertools.product(*options.values())
        if ways[0].stored_as == ways[3].stored_as == ways[4].stored_as
    ]
    sizes = [sum(way.n_bytes for way in ways) for ways in allowed]
    budget_bytes = generator.randrange(min(sizes), max(sizes) + 1)
    best = min(
        sum(way.loss_nats for way in ways)
        for ways, size in zip(allowed, sizes, strict=True)
        if size <= budget_bytes
    )
    found = allocate(options, budget_bytes, shared=shared)
    check_honest(options, found, budget_bytes)
    assert found.storage["t0"] == found.storage["t3"] == found.storage["t4"]
    assert found.predicted_nats == pytest.approx(best, rel=2e-6, abs=0)


def test_a_group_without_a_common_type_is_refused() -> None:
    with pytest.raises(UsageError, match="must share"):
        allocate({"a": [option("x", 1, 0.1)], "b": [option("y", 1, 0.1)]}, 9, shared=[("a", "b")])


def test_the_ends_of_a_model_get_the_most_bits() -> None:
    ways = [option("low", 10, 1.0), option("high", 20, 0.1)]
    options = {f"layer{index}": ways for index in range(6)}
    found = allocate(options, 90)
    high = [name for name, stored_as in found.storage.items() if stored_as == "high"]
    assert high == ["layer0", "layer1", "layer5"]


def test_allocations_repeat() -> None:
    options = realistic(100, seed=11)
    least, most = limits(options)
    budget_bytes = (least + most) // 2
    assert allocate(options, budget_bytes) == allocate(options, budget_bytes)


def test_equal_layers_are_fast_and_distinct_ones_fast_enough() -> None:
    """Bounds with room for a busy machine; alone they take 0.02 s and 0.3 s."""
    for options, limit_s in (
        (realistic(560, seed=2, equal_layers=True), 0.5),
        (realistic(600, seed=2), 3.0),
    ):
        least, most = limits(options)
        start = time.process_time()
        allocate(options, int(least + 0.3 * (most - least)))
        assert time.process_time() - start < limit_s


def test_nothing_is_printed() -> None:
    """`--json` must stay one document. HiGHS prints from C, some of it once a process."""
    code = """
from test_solve import allocate, limits, realistic
for seed in range(4):
    options = realistic(192, seed)
    least, most = limits(options)
    for share in (0.4, 0.47, 0.8, 0.95):
        allocate(options, int(least + share * (most - least)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
