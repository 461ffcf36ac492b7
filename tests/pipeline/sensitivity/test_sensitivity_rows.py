"""Samples of rows and of sequences."""

import pytest
import torch

from tightfit.calib.calibration import CalibrationOptions, CalibrationSample, CalibrationSet
from tightfit.pipeline.sensitivity.rows import likely_rows, spread_rows
from tightfit.pipeline.sensitivity.tokens import (
    GRADIENT_TOKENS,
    MAX_SEQUENCE_TOKENS,
    choose_sequences,
    spread_sequences,
)


@pytest.mark.parametrize("n_rows", [1, 127, 128, 129, 200, 576, 8192])
def test_each_equal_part_gives_one_row(n_rows: int) -> None:
    rows = spread_rows(n_rows, 128).tolist()
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < n_rows
    assert len(rows) >= min(n_rows, 128) * 0.6
    if n_rows == 8192:
        assert [row // 64 for row in rows] == list(range(128))
        assert len({row % 64 for row in rows}) > 32, "all places of a head are met"


def test_rows_drawn_by_size_give_sums_of_what_is_proportional_to_it() -> None:
    size_O = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 100
    drawn = likely_rows(size_O, 50)
    assert len(drawn.rows_S) <= 50
    estimate = (drawn.weight_S * 3 * size_O[drawn.rows_S]).sum()
    torch.testing.assert_close(estimate, 3 * size_O.sum(), rtol=1e-5, atol=0)
    # A row larger than one step of the systematic sample is always there.
    large = (size_O > size_O.sum() / 50).nonzero()[:, 0]
    assert 3 < len(large) < 50
    assert torch.isin(large, drawn.rows_S).all()


def test_rows_of_size_zero_are_not_drawn() -> None:
    assert likely_rows(torch.tensor([0.0, 2.0, 0.0, 0.0]), 10).rows_S.tolist() == [1]


def test_sequences_are_cut_and_spread_over_the_set() -> None:
    samples = tuple(
        CalibrationSample(ids=(number,) * (700 if number % 2 else 100), completion_start=0)
        for number in range(100)
    )
    chosen = choose_sequences(CalibrationSet(options=CalibrationOptions(), samples=samples))
    numbers = [ids[0] for ids in chosen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 60
    assert max(map(len, chosen)) == MAX_SEQUENCE_TOKENS
    assert 0.7 * GRADIENT_TOKENS < sum(map(len, chosen)) <= GRADIENT_TOKENS


def test_one_sequence_longer_than_asked_is_kept() -> None:
    assert spread_sequences([(1,) * 50, (2,) * 50], 10) == ((1,) * 50,)
