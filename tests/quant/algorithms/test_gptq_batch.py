"""Matrices solved together get the bits that each gets alone, which `test_gptq` holds against a
dense reference.
"""

import itertools
import logging
from functools import cache

import pytest
import torch
from dense_reference import obq_gptq
from layer_error import correlated_layer
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms import gptq as gptq_module
from tightfit.quant.algorithms.gptq import (
    GptqResult,
    GptqSettings,
    gptq,
    solve_batch,
    solve_shared,
    solve_shared_batch,
)
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.registry import GRIDS

N_ROWS = 9
"""Odd, so that the rows of a matrix never fill whole vector registers."""


@cache
def experts(n_columns: int) -> tuple[Tensor, Tensor]:
    """Weights (E, O, I) and Hessians (E, I, I) of the kinds that experts have.

    Many tokens; many tokens that never reach some columns; few; one; a Hessian that Cholesky
    refuses at first.
    """
    layers = [correlated_layer(N_ROWS, n_columns, 2 * n_columns, seed) for seed in range(5)]
    hessians = [layer.statistics().hessian_II for layer in layers]
    alive_I = torch.ones(n_columns).index_fill_(0, torch.tensor([3, 40, 41]), 0)
    hessians[1] = hessians[1] * torch.outer(alive_I, alive_I)
    for which, n_tokens in ((2, 5), (3, 1)):
        x_TI = layers[which].calibration_TI[:n_tokens]
        hessians[which] = x_TI.T @ x_TI / n_tokens
    hessians[4] = indefinite(hessians[4])
    return torch.stack([layer.w_OI for layer in layers]), torch.stack(hessians)


def indefinite(hessian_II: Tensor) -> Tensor:
    """With one negative eigenvalue beyond 1 % and within 10 % of the mean diagonal."""
    scale_I = hessian_II.diagonal().sqrt()
    values_I, vectors_II = torch.linalg.eigh((hessian_II / torch.outer(scale_I, scale_I)).double())
    values_I[0] = -0.05
    return (vectors_II * values_I @ vectors_II.T).float()


def assert_same(ours: GptqResult, theirs: GptqResult) -> None:
    assert ours.tensor.grid == theirs.tensor.grid
    assert ours.tensor.shape == theirs.tensor.shape
    assert torch.equal(ours.tensor.codes_OI, theirs.tensor.codes_OI)
    assert ours.tensor.params.keys() == theirs.tensor.params.keys()
    for name, part in theirs.tensor.params.items():
        assert torch.equal(ours.tensor.params[name], part), name
    index_I, expected_I = ours.tensor.group_index_I, theirs.tensor.group_index_I
    assert (index_I is None) == (expected_I is None)
    if index_I is not None and expected_I is not None:
        assert torch.equal(index_I, expected_I)
    assert ours.loss == theirs.loss
    assert ours.damp_fraction == theirs.damp_fraction
    assert ours.n_dead_columns == theirs.n_dead_columns


STORAGE_ORDERS = (Order.NATURAL, Order.GROUP_AWARE, Order.STATIC)
CASES = [
    # (grid, width). 512 are two super-blocks; 192 is an FP8 block and the half of one, which
    # group-aware orders reach at another time in each matrix.
    *itertools.product([("int4-g32-sym", 128), ("int3-g64-asym", 128)], Order),
    *itertools.product(
        [
            ("int4-channel-asym", 72),
            ("Q4_0", 96),
            ("Q4_K", 512),
            ("fp8-e4m3-tensor", 96),
            ("fp8-e4m3-block128", 192),
        ],
        STORAGE_ORDERS,
    ),
    *(((name, 96), Order.STATIC) for name in ("Q5_1", "Q8_0", "IQ4_NL", "fp8-e4m3-channel")),
    *(((name, 256), Order.STATIC) for name in ("Q2_K", "Q3_K", "Q5_K", "Q6_K", "IQ4_XS")),
]


@pytest.mark.parametrize(("case", "order"), CASES)
def test_together_as_alone(case: tuple[str, int], order: Order) -> None:
    name, n_columns = case
    weights_EOI, hessians_EII = experts(n_columns)
    settings = GptqSettings(order=order)
    together = solve_batch(weights_EOI, hessians_EII, GRIDS[name], settings)
    for ours, w_OI, hessian_II in zip(together, weights_EOI, hessians_EII, strict=True):
        assert_same(ours, gptq(w_OI, hessian_II, GRIDS[name], settings))
        assert torch.isfinite(GRIDS[name].dequantize(ours.tensor)).all()
    assert [result.n_dead_columns for result in together] == [0, 3, 0, 0, 0]
    assert [result.damp_fraction for result in together] == pytest.approx([0.01] * 4 + [0.1])


def test_each_is_the_dense_reference_of_its_own() -> None:
    weights_EOI, hessians_EII = experts(128)
    grid, settings = GRIDS["int4-g32-sym"], GptqSettings(order=Order.GROUP_AWARE)
    order_of_spans = {
        tuple(torch.argsort(hessian_II.diagonal().reshape(-1, 32).sum(dim=1)).tolist())
        for hessian_II in hessians_EII[[0, 4]]
    }
    assert len(order_of_spans) == 2
    together = solve_batch(weights_EOI[[0, 4]], hessians_EII[[0, 4]], grid, settings)
    for which, ours in zip((0, 4), together, strict=True):
        codes_OI, _, _ = obq_gptq(
            weights_EOI[which], hessians_EII[which], grid, settings.order, ours.damp_fraction
        )
        assert (ours.tensor.codes_OI != codes_OI).float().mean() <= 0.005


def test_linears_of_one_input_together() -> None:
    weights_EOI, hessians_EII = experts(128)
    batch = [{"gate": w_OI[:4], "up": w_OI[4:8], "f": w_OI[2:7]} for w_OI in weights_EOI]
    for gate, up in (("Q4_0", "Q4_0"), ("int4-g64-sym", "Q8_0")):
        grids = {"gate": GRIDS[gate], "up": GRIDS[up], "f": GRIDS["fp8-e4m3-tensor"]}
        together = solve_shared_batch(batch, hessians_EII, grids)
        for ours, weights, hessian_II in zip(together, batch, hessians_EII, strict=True):
            alone = solve_shared(weights, hessian_II, grids)
            assert list(ours) == list(weights)
            for name in weights:
                assert_same(ours[name], alone[name])


def test_columns_of_all_are_rounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = GRIDS["IQ4_NL"]  # column after column in torch, as every grid on a GPU
    weights_EOI, hessians_EII = experts(128)
    rows: list[int] = []
    plain_round = type(grid).round

    def counting(self: object, w_OK: Tensor, lattice: object) -> Tensor:
        rows.append(len(w_OK))
        return plain_round(self, w_OK, lattice)  # type: ignore[arg-type]

    monkeypatch.setattr(type(grid), "round", counting)
    whole = solve_batch(weights_EOI, hessians_EII, grid)
    assert rows == [5 * N_ROWS] * 128
    rows.clear()
    # Too many rows to be solved at once: two and two and one.
    monkeypatch.setattr(gptq_module, "CPU_ROWS", 2 * N_ROWS + 1)
    parts = solve_batch(list(weights_EOI), list(hessians_EII), grid)
    assert rows == [2 * N_ROWS] * 256 + [N_ROWS] * 128
    for ours, theirs in zip(parts, whole, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_bit_depends_on_how_threads_share_the_rows(n_threads: int) -> None:
    # 3 x 700 rows of up to 31 columns are beyond torch's grain of 32,768 elements.
    layers = [correlated_layer(700, 64, 128, seed) for seed in range(3)]
    grid, before = GRIDS["int4-g32-asym"], torch.get_num_threads()
    hessians = [layer.statistics().hessian_II for layer in layers]
    torch.set_num_threads(n_threads)
    try:
        together = solve_batch([layer.w_OI for layer in layers], hessians, grid)
        alone = [gptq(layer.w_OI, of, grid) for layer, of in zip(layers, hessians, strict=True)]
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


def test_a_zero_hessian_among_others_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    weights_EOI, hessians_EII = experts(128)
    hessians_EII = hessians_EII.clone()
    hessians_EII[2] = 0
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(QuantizationError, match="Hessian is zero"),
    ):
        solve_batch(weights_EOI, hessians_EII, GRIDS["int4-g32-sym"])


def test_act_order_and_bad_weights_are_refused() -> None:
    weights_EOI, hessians_EII = experts(128)
    with pytest.raises(QuantizationError, match="act-order"):
        solve_batch(weights_EOI, hessians_EII, GRIDS["Q4_0"], GptqSettings(order=Order.ACT_ORDER))
    weights_EOI = weights_EOI.clone()
    weights_EOI[3, 2, 1] = torch.nan
    with pytest.raises(QuantizationError, match="NaN"):
        solve_batch(weights_EOI, hessians_EII, GRIDS["Q4_0"])
