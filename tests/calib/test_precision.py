"""The precision of a calibration's products holds in its context alone."""

import pytest
import torch

from tightfit.calib.precision import Precision, products_in

BFLOAT16_STEP = 2.0**-8
"""Largest relative error of a factor."""


@pytest.mark.parametrize("precision", list(Precision))
def test_it_holds_inside_alone(precision: Precision) -> None:
    before = torch.get_float32_matmul_precision()
    with products_in(precision):
        assert torch.get_float32_matmul_precision() == precision.value
    assert torch.get_float32_matmul_precision() == before


def test_it_ends_with_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), products_in(Precision.MEDIUM):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("precision", list(Precision))
def test_a_product_is_as_near_as_its_factors(precision: Precision) -> None:
    torch.manual_seed(0)
    x_TI, w_OI = torch.randn(512, 256), torch.randn(384, 256)
    exact_TO = x_TI.double() @ w_OI.double().T
    with products_in(precision):
        y_TO = torch.nn.functional.linear(x_TI, w_OI)
    bound = 1e-6 if precision is Precision.HIGHEST else BFLOAT16_STEP
    assert ((y_TO - exact_TO).norm() / exact_TO.norm()).item() < bound
