"""Input statistics against X^T X in float64."""

import pytest
import torch
from torch import Tensor

from tightfit.errors import CalibrationError
from tightfit.quant.algorithms.hessian import HessianAccumulator, output_error


def tokens(n_tokens: int, n_columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n_columns, n_columns, generator=generator) / n_columns**0.5
    return torch.randn(n_tokens, n_columns, generator=generator) @ mix


# 1600 is beyond the width where only the lower triangle is computed, with a partial last block.
@pytest.mark.parametrize("n_columns", [48, 1600])
def test_means_over_batches(n_columns: int) -> None:
    x = tokens(90, n_columns)
    accumulator = HessianAccumulator(n_columns)
    for batch in (x[:7], x[7:50], x[50:]):
        accumulator.add(batch)
    found = accumulator.statistics()
    exact = x.double().T @ x.double() / 90
    assert found.n_tokens == 90
    assert torch.equal(found.hessian_II, found.hessian_II.T)
    torch.testing.assert_close(found.hessian_II.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.importance_I.double(), exact.diagonal(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.abs_mean_I, x.abs().mean(dim=0))
    assert torch.equal(found.abs_max_I, x.abs().amax(dim=0))


def test_integer_weights_are_repetitions() -> None:
    x, times = tokens(40, 24), torch.arange(40) % 4
    weighted, repeated = HessianAccumulator(24), HessianAccumulator(24)
    weighted.add(x, times)
    repeated.add(x.repeat_interleave(times, dim=0))
    ours, theirs = weighted.statistics(), repeated.statistics()
    torch.testing.assert_close(ours.hessian_II, theirs.hessian_II)
    torch.testing.assert_close(ours.abs_mean_I, theirs.abs_mean_I)
    assert torch.equal(ours.abs_max_I, theirs.abs_max_I)
    assert ours.n_tokens == 30


def test_padding_of_weight_zero_never_enters() -> None:
    x = tokens(20, 24)
    padded = torch.cat([x, torch.full((5, 24), torch.nan)])
    accumulator, plain = HessianAccumulator(24), HessianAccumulator(24)
    accumulator.add(padded, torch.arange(25) < 20)
    plain.add(x)
    ours, theirs = accumulator.statistics(), plain.statistics()
    torch.testing.assert_close(ours.hessian_II, theirs.hessian_II)
    assert torch.equal(ours.abs_max_I, theirs.abs_max_I)


def test_output_error_is_that_of_the_outputs() -> None:
    x = tokens(64, 24)
    difference = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    accumulator = HessianAccumulator(24)
    accumulator.add(x)
    direct = (x.double() @ difference.double().T).square().sum(dim=1).mean().item()
    found = output_error(difference, accumulator.statistics().hessian_II)
    assert found == pytest.approx(direct, rel=1e-5)


def test_scaled_statistics_are_those_of_the_divided_input() -> None:
    x = tokens(64, 24)
    scale = torch.linspace(0.5, 4, 24)
    accumulator, divided = HessianAccumulator(24), HessianAccumulator(24)
    accumulator.add(x)
    divided.add(x / scale)
    ours, theirs = accumulator.statistics().scaled(scale), divided.statistics()
    torch.testing.assert_close(ours.hessian_II, theirs.hessian_II)
    torch.testing.assert_close(ours.abs_max_I, theirs.abs_max_I)
    torch.testing.assert_close(ours.abs_mean_I, theirs.abs_mean_I)


def test_no_token_and_no_number_are_errors() -> None:
    accumulator = HessianAccumulator(8)
    accumulator.add(torch.zeros(0, 8))
    with pytest.raises(CalibrationError, match="no calibration token"):
        accumulator.statistics()
    accumulator.add(torch.full((1, 8), torch.inf))
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        accumulator.statistics()
