"""Shrunk statistics: by hand, against repeated tokens, and on tokens that were held out."""

import pytest
import torch
from torch import Tensor

from tightfit.quant.algorithms.gptq import gptq
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics, output_error
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.algorithms.shrinkage import shrink
from tightfit.quant.registry import GRIDS


def statistics(x_TI: Tensor, weight_T: Tensor | None = None) -> InputStatistics:
    accumulator = HessianAccumulator(x_TI.shape[1])
    accumulator.add(x_TI, weight_T)
    return accumulator.statistics()


def clusters(n_tokens: int, n_columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of eight kinds, and the kind of each: what a router sorts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rotation_II = torch.linalg.qr(normal(n_columns, n_columns))[0]
    spectrum_I = torch.arange(1, n_columns + 1) ** -0.5
    kind_T = torch.randint(8, (n_tokens,), generator=generator)
    spread_I, mean_I = torch.exp(0.8 * normal(8, n_columns))[kind_T], normal(8, n_columns)[kind_T]
    x_TI = (normal(n_tokens, n_columns) * spread_I + mean_I) * spectrum_I @ rotation_II
    return x_TI * torch.exp(0.5 * normal(n_columns)), kind_T


TOKENS_TI, KIND_T = clusters(6000, 128)
OWN_TI = TOKENS_TI[KIND_T == 0]
HELD_OUT_TI = OWN_TI[400:]
WHOLE = statistics(TOKENS_TI)
W_OI = 0.02 * torch.randn(24, 128, generator=torch.Generator().manual_seed(1))


def test_by_hand() -> None:
    whole = InputStatistics(
        hessian_II=torch.tensor([[8.0, 2.0], [2.0, 4.0]]),
        abs_max_I=torch.tensor([9.0, 2.0]),
        abs_mean_I=torch.tensor([2.0, 1.0]),
        n_tokens=100,
    )
    own = InputStatistics(
        hessian_II=torch.tensor([[0.0, 0.0], [0.0, 12.0]]),
        abs_max_I=torch.tensor([0.0, 5.0]),
        abs_mean_I=torch.tensor([0.0, 3.0]),
        n_tokens=6,
        design_effect=2.0,
    )
    shrunk = shrink(own, whole, prior_tokens=1)  # n = 3: three parts own, one part whole
    assert shrunk.own_share == 0.75
    found = shrunk.statistics
    assert torch.equal(found.hessian_II, torch.tensor([[2.0, 0.5], [0.5, 10.0]]))
    assert torch.equal(found.abs_mean_I, torch.tensor([0.5, 2.5]))
    assert torch.equal(found.abs_max_I, torch.tensor([9.0, 5.0]))
    assert (found.n_tokens, found.effective_tokens) == (6, 3)
    assert shrink(own, whole).own_share == pytest.approx(3 / 5), "one token for each column"


def test_without_tokens_the_block_speaks() -> None:
    shrunk = shrink(None, WHOLE)
    assert shrunk.statistics is WHOLE
    assert shrunk.own_share == 0
    assert shrink(None, WHOLE, prior_tokens=0).own_share == 0


def test_equals_the_mean_over_tokens_that_are_counted_so_often() -> None:
    own = statistics(OWN_TI[:40])
    shrunk = shrink(own, WHOLE, prior_tokens=160).statistics
    weight_T = torch.cat([torch.full((40,), 1 / 40), torch.full((6000,), 4 / 6000)])
    pooled = statistics(torch.cat([OWN_TI[:40], TOKENS_TI]), weight_T)
    torch.testing.assert_close(shrunk.hessian_II, pooled.hessian_II, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shrunk.abs_mean_I, pooled.abs_mean_I, rtol=1e-4, atol=1e-6)
    assert torch.equal(shrunk.abs_max_I, pooled.abs_max_I)


def test_router_weights_lower_the_count() -> None:
    even, uneven = torch.full((4,), 0.3), torch.tensor([3.0, 1.0, 0.0, 0.0])
    assert statistics(OWN_TI[:4]).effective_tokens == 4
    assert statistics(OWN_TI[:4], even).effective_tokens == pytest.approx(4)
    assert statistics(OWN_TI[:4], uneven).effective_tokens == pytest.approx(16 / 10)
    accumulator = HessianAccumulator(128)
    accumulator.add(OWN_TI[:1], torch.tensor([3.0]))
    accumulator.add(OWN_TI[1:3])
    found = accumulator.statistics()
    assert found.effective_tokens == pytest.approx(25 / 11)
    scaled = found.scaled(torch.full((128,), 2.0))
    assert scaled.effective_tokens == found.effective_tokens


@pytest.mark.parametrize("name", ["int4-g128-asym", "Q5_1", "IQ4_NL", "fp8-e4m3-block128"])
@pytest.mark.parametrize("n_tokens", [0, 1, 7, 700])
def test_an_expert_is_never_nan(n_tokens: int, name: str) -> None:
    router_T = torch.linspace(1e-3, 1, 700)[:n_tokens].square()
    own = statistics(OWN_TI[:n_tokens], router_T) if n_tokens else None
    shrunk = shrink(own, WHOLE)
    found = shrunk.statistics
    assert 0 <= shrunk.own_share < 0.8
    for part in (found.hessian_II, found.abs_max_I, found.abs_mean_I):
        assert torch.isfinite(part).all()
    assert torch.equal(found.hessian_II, found.hessian_II.T)
    result = gptq(W_OI, found.hessian_II, GRIDS[name])
    assert result.damp_fraction == 0.01, "no Cholesky failed"
    assert torch.isfinite(GRIDS[name].dequantize(result.tensor)).all()
    assert torch.isfinite(GRIDS[name].dequantize(rtn(W_OI, GRIDS[name], found.importance_I))).all()


def test_vanishing_router_weights_still_give_numbers() -> None:
    shrunk = shrink(statistics(OWN_TI[:3], torch.tensor([1e-30, 2e-30, 1e-42])), WHOLE)
    assert 0 < shrunk.own_share < 3 / 128
    assert torch.isfinite(shrunk.statistics.hessian_II).all()


def held_out_error(found: InputStatistics) -> float:
    grid = GRIDS["int3-g64-asym"]
    rounded_OI = grid.dequantize(gptq(W_OI, found.hessian_II, grid).tensor)
    hessian_II = HELD_OUT_TI.T @ HELD_OUT_TI
    return output_error(rounded_OI - W_OI, hessian_II) / output_error(W_OI, hessian_II)


@pytest.mark.parametrize(
    ("n_tokens", "of_own", "of_whole"), [(8, 0.6, 0.97), (32, 0.85, 0.97), (400, 1.2, 0.75)]
)
def test_held_out_error_against_that_of_either_alone(
    n_tokens: int, of_own: float, of_whole: float
) -> None:
    own = statistics(OWN_TI[:n_tokens])
    ours = held_out_error(shrink(own, WHOLE).statistics)
    assert ours < of_own * held_out_error(own)
    assert ours < of_whole * held_out_error(WHOLE)


def test_many_tokens_speak_for_themselves() -> None:
    own = InputStatistics(
        hessian_II=WHOLE.hessian_II * 2,
        abs_max_I=WHOLE.abs_max_I,
        abs_mean_I=WHOLE.abs_mean_I,
        n_tokens=128 * 999,
    )
    shrunk = shrink(own, WHOLE)
    assert shrunk.own_share == pytest.approx(0.999)
    torch.testing.assert_close(shrunk.statistics.hessian_II, 1.999 * WHOLE.hessian_II)
