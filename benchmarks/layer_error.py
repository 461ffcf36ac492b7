"""Held-out output error of one synthetic layer for every grid, and the speed of GPTQ, as markdown.

    python benchmarks/layer_error.py [--threads N]

The layer: inputs whose covariance has a power-law spectrum, log-normal channel magnitudes and
eight outlier channels, the shape that activations of language models have; Gaussian weights. The
error is |(Q - W) x| / |W x| over tokens that calibration never saw.

Shape legend: T tokens, I input columns, O output rows.
"""

import argparse
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.quant.algorithms.awq import scale_columns, search_scale
from tightfit.quant.algorithms.gptq import GptqSettings, gptq
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics, output_error
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Grid
from tightfit.quant.registry import GRIDS
from tightfit.quant.tensor import QuantizedTensor

N_OUTLIERS = 8
ORDER_GRIDS = ("int4-g128-sym", "Q4_K", "Q6_K", "Q2_K")
SPEED_GRIDS = ("int4-g128-sym", "Q4_K")
SPEED_WIDTH = 1536


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """A linear with calibration and held-out inputs."""

    w_OI: Tensor
    calibration_TI: Tensor
    held_out_TI: Tensor

    def statistics(self) -> InputStatistics:
        """Statistics of the calibration inputs."""
        accumulator = HessianAccumulator(self.w_OI.shape[1])
        accumulator.add(self.calibration_TI)
        return accumulator.statistics()

    def held_out_error(self, rounded_OI: Tensor) -> float:
        """Relative output error on the held-out inputs."""
        hessian_II = self.held_out_TI.T @ self.held_out_TI
        difference = output_error(rounded_OI - self.w_OI, hessian_II)
        return math.sqrt(difference / output_error(self.w_OI, hessian_II))


def correlated_layer(n_rows: int, n_columns: int, n_tokens: int, seed: int) -> Layer:
    """A random layer whose inputs are correlated as those of language models are."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rotation_II = torch.linalg.qr(normal(n_columns, n_columns))[0]
    spectrum_I = torch.arange(1, n_columns + 1) ** -0.5
    magnitude_I = torch.exp(0.5 * normal(n_columns))
    magnitude_I[torch.randperm(n_columns, generator=generator)[:N_OUTLIERS]] *= 8
    x_TI = normal(2 * n_tokens, n_columns) * spectrum_I @ rotation_II * magnitude_I
    return Layer(
        w_OI=0.02 * normal(n_rows, n_columns),
        calibration_TI=x_TI[:n_tokens],
        held_out_TI=x_TI[n_tokens:],
    )


def _table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---", *["--:"] * (len(header) - 1)], *rows):
        print("| " + " | ".join(row) + " |", flush=True)
    print()


def _grid_table(layer: Layer, grids: dict[str, Grid]) -> None:
    statistics = layer.statistics()

    def error(tensor: QuantizedTensor, scale_I: Tensor | float = 1.0) -> str:
        return f"{layer.held_out_error(grid.dequantize(tensor) / scale_I):.4f}"

    rows = []
    for name, grid in grids.items():
        awq = search_scale(
            {"w": layer.w_OI}, statistics.hessian_II, statistics.abs_mean_I, {"w": grid}
        )
        scaled_OI, scaled = scale_columns(layer.w_OI, awq.scale_I), statistics.scaled(awq.scale_I)
        rows.append(
            [
                name,
                f"{grid.bits_per_weight((len(layer.w_OI), layer.w_OI.shape[1])):.3f}",
                error(rtn(layer.w_OI, grid)),
                error(rtn(layer.w_OI, grid, statistics.importance_I)),
                error(rtn(scaled_OI, grid, scaled.importance_I), awq.scale_I),
                error(gptq(layer.w_OI, statistics.hessian_II, grid).tensor),
                error(gptq(scaled_OI, scaled.hessian_II, grid).tensor, awq.scale_I),
            ]
        )
    header = ["grid", "bits per weight", "RTN", "RTN, importance", "AWQ", "GPTQ", "AWQ + GPTQ"]
    _table(header, rows)


def _order_table(layer: Layer, grids: dict[str, Grid]) -> None:
    hessian_II = layer.statistics().hessian_II
    orders = (Order.NATURAL, Order.GROUP_AWARE, Order.STATIC)
    rows = []
    for name in ORDER_GRIDS:
        errors = []
        for order in orders:
            tensor = gptq(layer.w_OI, hessian_II, grids[name], GptqSettings(order=order)).tensor
            errors.append(f"{layer.held_out_error(grids[name].dequantize(tensor)):.4f}")
        rows.append([name, *errors])
    _table(["grid", *(order.value for order in orders)], rows)


def _speed_table(grids: dict[str, Grid]) -> None:
    layer = correlated_layer(SPEED_WIDTH, SPEED_WIDTH, SPEED_WIDTH, seed=0)
    hessian_II = layer.statistics().hessian_II
    rows = []
    for name in SPEED_GRIDS:
        start = time.process_time()
        gptq(layer.w_OI, hessian_II, grids[name])
        elapsed_s = time.process_time() - start
        rows.append([name, f"{elapsed_s:.2f}", f"{layer.w_OI.numel() / elapsed_s / 1e6:.2f}"])
    _table([f"GPTQ, {SPEED_WIDTH} x {SPEED_WIDTH}", "CPU s", "million weights / CPU s"], rows)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description="layer error of every grid")
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    layer = correlated_layer(256, 1024, 4096, seed=0)
    _grid_table(layer, GRIDS)
    _order_table(layer, GRIDS)
    _speed_table(GRIDS)


if __name__ == "__main__":
    main()
