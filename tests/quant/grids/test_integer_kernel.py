"""The compiled search of integer grids against the same steps in torch."""

import pytest
import torch
from torch import Tensor

from tightfit.quant.grids import integer_fit


def errors(w: Tensor, importance: Tensor | None, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    top_code = (1 << bits) - 1
    steps = torch.round(w.double() / scale[..., None].double())
    steps = torch.minimum(torch.maximum(steps, -zero[..., None]), top_code - zero[..., None])
    squared = (steps * scale[..., None] - w) ** 2
    return (squared if importance is None else squared * importance).sum(dim=2)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [32, 128, 1024])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_kernel_takes_the_same_steps(
    bits: int, symmetric: bool, width: int, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(bits)
    w = torch.randn(16, 1024 // width, width, generator=generator)
    w[0] = 0
    w[1] *= 1e-7
    w[2] = w[2].abs()
    importance = torch.randn(1, *w.shape[1:], generator=generator).exp() if weighted else None
    scale, zero = integer_fit._fit_compiled(w, importance, bits, symmetric)
    expected = integer_fit._search(w, importance, bits, symmetric)
    assert torch.equal(scale, scale.half().float())
    assert ((zero >= 0) & (zero < 1 << bits)).all()
    ours = errors(w, importance, scale, zero, bits)
    theirs = errors(w, importance, expected.scale[..., 0], expected.zero[..., 0], bits)
    # The steps are x / scale there and x * (1 / scale) here: ties may fall the other way.
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-12)
    assert float(ours.sum()) == pytest.approx(float(theirs.sum()), rel=1e-4)
    assert (scale == expected.scale[..., 0]).float().mean() > 0.98


def test_an_importance_of_every_row() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 2, 32, generator=generator)
    importance = torch.rand(4, 2, 32, generator=generator)
    scale, zero = integer_fit._fit_compiled(w, importance, 4, False)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = integer_fit._fit_compiled(w[rows], importance[rows], 4, False)
        assert torch.equal(scale[rows], alone[0])
        assert torch.equal(zero[rows], alone[1])
