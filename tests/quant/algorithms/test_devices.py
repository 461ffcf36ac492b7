"""Everything is created where the weights are, so that `--device cuda` works.

There is no GPU in the tests. Instead the default device is one without data: whatever is created
without naming the weights' device lands there, and the first operation on it fails.
"""

import pytest
import torch

from tightfit.quant.algorithms.awq import search_clip, search_scale
from tightfit.quant.algorithms.gptq import GptqSettings, gptq, solve_batch
from tightfit.quant.algorithms.hessian import HessianAccumulator
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.algorithms.shrinkage import shrink
from tightfit.quant.registry import GRIDS

CPU = torch.device("cpu")
NAMES = ("int4-g32-sym", "int3-channel-asym", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K")
NAMES += ("Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "fp8-e4m3-tensor", "fp8-e4m3-block128")
W_OI = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
X_TI = torch.randn(300, 256, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [Order.NATURAL, Order.GROUP_AWARE, Order.STATIC])
def test_nothing_is_created_on_the_default_device(name: str, order: Order) -> None:
    grid = GRIDS[name]
    with torch.device("meta"):
        accumulator = HessianAccumulator(256, CPU)
        accumulator.add(X_TI)
        statistics = accumulator.statistics()
        rounded = rtn(W_OI, grid)
        solved = gptq(W_OI, statistics.hessian_II, grid, GptqSettings(order=order)).tensor
        for tensor in (rounded, solved):
            again = grid.unpack(grid.pack(tensor), tensor.shape)
            assert grid.dequantize(again).device == CPU


def test_awq_and_act_order_neither() -> None:
    grid = GRIDS["int4-g32-asym"]
    with torch.device("meta"):
        accumulator = HessianAccumulator(256, CPU)
        accumulator.add(X_TI, torch.ones(300, device=CPU))
        statistics = accumulator.statistics()
        found = search_scale(
            {"a": W_OI.repeat(20, 1)}, statistics.hessian_II, statistics.abs_mean_I, {"a": grid}
        )
        settings = GptqSettings(order=Order.ACT_ORDER)
        scaled = statistics.scaled(found.scale_I)
        tensor = gptq(W_OI * found.scale_I, scaled.hessian_II, grid, settings).tensor
        assert grid.dequantize(tensor).device == CPU
        assert search_clip(W_OI, statistics.hessian_II, grid).device == CPU


@pytest.mark.parametrize("name", ["int4-g32-sym", "Q4_K", "fp8-e4m3-block128"])
def test_experts_neither(name: str) -> None:
    grid = GRIDS[name]
    with torch.device("meta"):
        whole, own = HessianAccumulator(256, CPU), HessianAccumulator(256, CPU)
        whole.add(X_TI)
        own.add(X_TI[:20], torch.ones(20, device=CPU))
        hessians = [
            shrink(seen, whole.statistics()).statistics.hessian_II
            for seen in (None, own.statistics())
        ]
        for result in solve_batch([W_OI, W_OI], hessians, grid):
            assert grid.dequantize(result.tensor).device == CPU
