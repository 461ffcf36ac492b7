import pytest
import torch

from tightfit.errors import CalibrationError
from tightfit.quant.algorithms.activation_scales import DYNAMIC, static_activation_scale


def test_the_largest_magnitude_is_the_largest_code() -> None:
    choice = static_activation_scale(3.7)
    assert choice.scale is not None
    assert not choice.dynamic
    assert (torch.tensor(3.7) / choice.scale).to(torch.float8_e4m3fn).float() == 448


def test_dynamic_holds_no_scale() -> None:
    assert DYNAMIC.dynamic
    assert DYNAMIC.scale is None


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_what_is_no_magnitude(bad: float) -> None:
    with pytest.raises(CalibrationError, match="largest magnitude"):
        static_activation_scale(bad)
