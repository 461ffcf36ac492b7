"""GPTQ against a dense reference that inverts the Hessian anew for every column."""

import itertools
import logging

import pytest
import torch
from dense_reference import obq_gptq
from layer_error import correlated_layer
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.gptq import GptqResult, GptqSettings, gptq, solve_shared
from tightfit.quant.algorithms.hessian import output_error
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.registry import GRIDS


def problem(n_columns: int = 128, n_rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    layer = correlated_layer(n_rows, n_columns, 4 * n_columns, seed)
    return layer.w_OI, layer.statistics().hessian_II


def assert_same(ours: GptqResult, theirs: GptqResult) -> None:
    assert torch.equal(ours.tensor.codes_OI, theirs.tensor.codes_OI)
    assert ours.tensor.params.keys() == theirs.tensor.params.keys()
    for name, part in theirs.tensor.params.items():
        assert torch.equal(ours.tensor.params[name], part)


REFERENCE_CASES = [
    # (grid, width): 160 makes an edge block for block128 and 96 blocks of 32 for int4-g32.
    *itertools.product([("int4-g32-sym", 96), ("int3-g64-asym", 128)], Order),
    *itertools.product(
        [
            ("int4-channel-asym", 72),
            ("fp8-e4m3-tensor", 72),
            ("fp8-e4m3-channel", 72),
            ("fp8-e4m3-block128", 160),
        ],
        [Order.NATURAL, Order.GROUP_AWARE],
    ),
    (("int2-g128-sym", 256), Order.GROUP_AWARE),
    (("Q4_0", 96), Order.GROUP_AWARE),
    (("Q4_0", 96), Order.STATIC),
]
# Another BLAS may round a weight that is nearly between two levels the other way; an algorithm
# that is subtly wrong (scales from stale weights, say) moves several codes in a hundred.
DIFFERING_CODES = 0.005


@pytest.mark.parametrize(("case", "order"), REFERENCE_CASES)
def test_equals_the_dense_reference(case: tuple[str, int], order: Order) -> None:
    name, n_columns = case
    grid = GRIDS[name]
    w, hessian = problem(n_columns)
    ours = gptq(w, hessian, grid, GptqSettings(order=order, damp_fraction=0.02)).tensor
    codes, params, values = obq_gptq(w, hessian, grid, order, 0.02)
    same = ours.codes_OI == codes
    assert (~same).float().mean() <= DIFFERING_CODES
    value = grid.dequantize(ours).double()
    near = torch.isclose(value, values, rtol=1e-4, atol=1e-9)
    assert (~near).float().mean() <= 2 * DIFFERING_CODES
    assert {part: stored.shape for part, stored in ours.params.items()} == {
        part: stored.shape for part, stored in params.items()
    }


@pytest.mark.parametrize("order", Order)
def test_loss_is_the_damped_output_error(order: Order) -> None:
    grid = GRIDS["int4-g32-asym"]
    w, hessian = problem()
    result = gptq(w, hessian, grid, GptqSettings(order=order))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    expected = output_error(grid.dequantize(result.tensor) - w, damped)
    assert result.loss == pytest.approx(expected, rel=1e-3)
    assert result.damp_fraction == 0.01
    assert result.n_dead_columns == 0


def test_act_order_stores_the_group_of_each_column() -> None:
    w, hessian = problem()
    tensor = gptq(w, hessian, GRIDS["int4-g32-sym"], GptqSettings(order=Order.ACT_ORDER)).tensor
    assert tensor.group_index_I is not None
    assert tensor.group_index_I.dtype == torch.int32
    ranked = torch.argsort(hessian.diagonal(), descending=True)
    assert torch.equal(tensor.group_index_I[ranked], (torch.arange(128) // 32).int())


@pytest.mark.parametrize("name", ["int4-channel-sym", "fp8-e4m3-channel", "Q4_K"])
def test_act_order_is_refused(name: str) -> None:
    w, hessian = problem(256)
    with pytest.raises(QuantizationError, match="act-order") as caught:
        gptq(w, hessian, GRIDS[name], GptqSettings(order=Order.ACT_ORDER))
    assert "group-aware" in caught.value.hint


@pytest.mark.parametrize("order", [Order.NATURAL, Order.GROUP_AWARE, Order.STATIC])
def test_shared_input_equals_one_by_one(order: Order) -> None:
    w, hessian = problem(256, n_rows=40)
    weights = {"q": w[:16], "k": w[16:24], "v": w[24:32], "g": w[32:36], "u": w[36:]}
    names = {
        "q": "int4-g128-asym",
        "k": "int4-g128-asym",
        "v": "int8-channel-sym",
        "g": "fp8-e4m3-tensor",
        "u": "fp8-e4m3-tensor",
    }
    grids = {linear: GRIDS[name] for linear, name in names.items()}
    settings = GptqSettings(order=order)
    shared = solve_shared(weights, hessian, grids, settings)
    assert list(shared) == list(weights)
    for linear, w_OI in weights.items():
        alone = gptq(w_OI, hessian, grids[linear], settings)
        assert_same(shared[linear], alone)
        assert shared[linear].loss == pytest.approx(alone.loss, rel=1e-5)
        assert shared[linear].tensor.shape == tuple(w_OI.shape)


def test_dead_columns_become_zero_and_change_nothing_else() -> None:
    grid = GRIDS["int4-g32-sym"]
    w, hessian = problem()
    dead = torch.tensor([3, 40, 41])
    alive = torch.ones(128, dtype=torch.bool).index_fill_(0, dead, False)
    hessian = hessian * alive[:, None] * alive
    result = gptq(w, hessian, grid)
    assert result.n_dead_columns == 3
    value = grid.dequantize(result.tensor)
    assert not value[:, dead].any()
    assert torch.isfinite(value).all()
    # Whatever stood in the dead columns cannot matter.
    other = w.clone()
    other[:, dead] = 7.0
    assert_same(gptq(other, hessian, grid), result)


def test_dead_columns_stay_out_of_the_damping() -> None:
    grid = GRIDS["int4-g32-sym"]
    w, hessian = problem()
    dead = torch.tensor([3, 40, 41])
    alive = torch.ones(128, dtype=torch.bool).index_fill_(0, dead, False)
    hessian = hessian * alive[:, None] * alive
    average = hessian.diagonal()[alive].mean() * (~alive).diag()
    settings = GptqSettings(order=Order.NATURAL)
    ours = gptq(w, hessian, grid, settings)
    assert_same(ours, gptq(w * alive, hessian + average, grid, settings))


def test_nothing_calibrated_is_an_error() -> None:
    w, hessian = problem()
    with pytest.raises(QuantizationError, match="Hessian is zero"):
        gptq(w, torch.zeros_like(hessian), GRIDS["int4-g32-sym"])


def test_damping_grows_until_cholesky_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    w, hessian = problem()
    scale_I = hessian.diagonal().sqrt()  # a unit diagonal stays positive below
    values, vectors = torch.linalg.eigh((hessian / torch.outer(scale_I, scale_I)).double())
    values[0] = -0.05
    indefinite = (vectors * values @ vectors.T).float()
    with caplog.at_level(logging.WARNING):
        result = gptq(w, indefinite, GRIDS["int4-g32-sym"])
    assert result.damp_fraction == pytest.approx(0.1)
    assert "trying 0.1" in caplog.text
    explicit = gptq(w, indefinite, GRIDS["int4-g32-sym"], GptqSettings(damp_fraction=0.1))
    assert_same(result, explicit)


def test_a_hessian_that_no_damping_saves_is_an_error() -> None:
    w, _ = problem(32)
    indefinite = torch.full((32, 32), 9.0).fill_diagonal_(1.0)
    with pytest.raises(QuantizationError, match="not positive definite"):
        gptq(w, indefinite, GRIDS["int4-g32-sym"])


def test_refuses_bad_weights_and_widths() -> None:
    w, hessian = problem()
    with pytest.raises(QuantizationError, match="NaN"):
        gptq(w.index_fill(1, torch.tensor([0]), torch.nan), hessian, GRIDS["int4-g32-sym"])
    w, hessian = problem(96)
    with pytest.raises(QuantizationError, match="width 96"):
        gptq(w, hessian, GRIDS["int4-g128-sym"])
