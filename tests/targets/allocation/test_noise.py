"""The table of noise against the grids themselves, on a sample that it was not made from."""

import pytest
import torch
from torch import Tensor

from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import GRIDS
from tightfit.targets.allocation.noise import RELATIVE_NOISE
from tightfit.targets.grids import FLOAT_BYTES

WIDTH = 4096
"""Of the table: one scale per row loses a little more in wider rows."""
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@pytest.fixture(scope="module")
def sample() -> tuple[Tensor, Tensor]:
    """Gaussian weights and log-normal importances."""
    generator = torch.Generator().manual_seed(20_000)
    w_OI = torch.randn(64, WIDTH, generator=generator)
    return w_OI, torch.exp(torch.randn(WIDTH, generator=generator))


def weighted_error(rounded_OI: Tensor, w_OI: Tensor, importance_I: Tensor) -> float:
    error_I = (rounded_OI - w_OI).square().sum(0)
    return float((error_I @ importance_I) / (w_OI.square().sum(0) @ importance_I))


def test_every_grid_is_listed() -> None:
    assert set(RELATIVE_NOISE) == set(GRIDS) | set(FLOAT_BYTES)


@pytest.mark.parametrize("name", GRIDS)
def test_noise_of_a_grid(name: str, sample: tuple[Tensor, Tensor]) -> None:
    w_OI, importance_I = sample
    rounded_OI = GRIDS[name].dequantize(rtn(w_OI, GRIDS[name], importance_I))
    found = weighted_error(rounded_OI, w_OI, importance_I)
    assert found == pytest.approx(RELATIVE_NOISE[name], rel=0.05)


@pytest.mark.parametrize("name", FLOATS)
def test_noise_of_a_float_type(name: str, sample: tuple[Tensor, Tensor]) -> None:
    w_OI, importance_I = sample
    found = weighted_error(w_OI.to(FLOATS[name]).float(), w_OI, importance_I)
    assert found == pytest.approx(RELATIVE_NOISE[name], rel=0.05)
