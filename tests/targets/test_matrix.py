"""Every cell of the matrix by hand, and the hardware table of the family."""

import pytest
from support import plan_by_hand as hand

from tightfit.calib.models import MODELS
from tightfit.errors import UsageError
from tightfit.targets.matrix import SHOWN, Cell, Matrix, make_matrix
from tightfit.targets.profile import list_targets

LARGEST_FIRST = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
AT_LEAST_4_BITS = LARGEST_FIRST[:4]


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return make_matrix()


@pytest.fixture(scope="module")
def cells(matrix: Matrix) -> dict[tuple[str, str], Cell]:
    return {(cell.model, cell.target): cell for cell in matrix.cells}


def test_all_models_and_targets_are_in_it(matrix: Matrix) -> None:
    assert matrix.context_tokens == 8192
    assert SHOWN == LARGEST_FIRST
    assert len(MODELS) == 10
    assert sorted(name for names in matrix.models for name in names) == sorted(
        model.name for model in MODELS.values()
    )
    assert [names[0] for names in matrix.models] == list(hand.MODELS)
    assert matrix.models[-1] == ("r1", "r1-zero", "r1-0528")
    assert {target.name for target in matrix.targets} == set(list_targets()) == set(hand.MACHINES)
    room = [hand.MACHINES[target.name] for target in matrix.targets]
    totals = [round(each.available_gib * each.devices, 6) for each in room]
    assert totals == sorted(totals)
    assert len(matrix.cells) == len(hand.MODELS) * len(hand.MACHINES)


@pytest.mark.parametrize("target", hand.MACHINES)
def test_every_cell_by_hand(target: str, cells: dict[tuple[str, str], Cell]) -> None:
    for model in hand.MODELS:
        fitting = [s for s in LARGEST_FIRST if hand.use(model, s, target, 8192).fits(target)]
        scheme = fitting[0] if fitting else None
        longest = hand.longest_context(model, scheme, target) if scheme else 0
        expected = Cell(model=model, target=target, scheme=scheme, max_context_tokens=longest)
        assert cells[model, target] == expected


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("r1-distill-qwen-1.5b", ("rtx3060-8gb", "jetson-orin-nano-8gb")),
        ("r1-distill-qwen-7b", ("rtx3060-8gb", "jetson-orin-nano-8gb")),
        ("r1-distill-llama-8b", ("rtx3060-8gb", "jetson-orin-nano-8gb")),
        ("r1-0528-qwen3-8b", ("rtx3060-8gb", "jetson-orin-nano-8gb")),
        ("r1-distill-qwen-14b", ("rtx3060-12gb", "rtx4060ti-16gb", "rtx4070ti-super-16gb")),
        ("r1-distill-qwen-32b", ("rtx3090-24gb", "rtx4090-24gb", "l4-24gb")),
        ("r1-distill-llama-70b", ("rtx3090x2", "a100-80gb")),
        ("r1", ("a100x8-80gb", "h100x8-80gb", "a100x16-80gb")),
    ],
)
def test_the_hardware_table(
    model: str, targets: tuple[str, ...], cells: dict[tuple[str, str], Cell]
) -> None:
    """Each model at 4 bits or more on the machines that people have it for."""
    for target in targets:
        assert cells[model, target].scheme in AT_LEAST_4_BITS
        assert cells[model, target].max_context_tokens >= 8192


def test_what_is_too_large_is_empty(cells: dict[tuple[str, str], Cell]) -> None:
    for model, target in (
        ("r1", "a100x2-80gb"),
        ("r1-distill-llama-70b", "rtx4090-24gb"),
        ("r1-distill-qwen-14b", "rtx3060-8gb"),
    ):
        assert cells[model, target].scheme is None
        assert cells[model, target].max_context_tokens == 0


def test_a_context_that_only_r1_has() -> None:
    long = make_matrix(163840)
    filled = {cell.target: cell for cell in long.cells if cell.scheme}
    assert {cell.model for cell in filled.values()} == {"r1"}
    for target in hand.MACHINES:
        fitting = [s for s in LARGEST_FIRST if hand.use("r1", s, target, 163840).fits(target)]
        assert (filled[target].scheme if target in filled else None) == (
            fitting[0] if fitting else None
        )


@pytest.mark.parametrize("context", [0, -1, 163841])
def test_a_context_that_no_model_has(context: int) -> None:
    with pytest.raises(UsageError, match=f"context of {context} tokens") as caught:
        make_matrix(context)
    assert caught.value.allowed == "1 to 163840 tokens"
    assert "8192" in caught.value.hint
