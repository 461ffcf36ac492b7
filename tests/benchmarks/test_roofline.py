"""The roofline: its amounts against hand calculations and counts, its roof, and its tables."""

from dataclasses import replace

import pytest
import torch
from support.counted_operations import CountedOperations

from benchmarks import roofline
from benchmarks.r1_work import solve
from benchmarks.roofline import GPUS, Gpu, at_roof, roofline_sections, total_s, write_roofline
from benchmarks.roofline_work import (
    COLUMN_KERNELS,
    Amounts,
    Input,
    dense_layer,
    expert_batch,
    factor,
    layer_error,
    loop_behind,
    loop_inside,
)
from tightfit.quant.algorithms import column_loop
from tightfit.quant.algorithms.column_loop import BLOCK_COLUMNS
from tightfit.quant.algorithms.ordering import Order
from tightfit.quant.registry import get_grid

TOKENS = 128 * 2048
HIDDEN, WIDE, KV = 3584, 18944, 512
"""Of DeepSeek-R1-Distill-Qwen-7B; R1's follow."""
R1_HIDDEN, R1_WIDE = 7168, 2048


def test_a_dense_layer_by_hand() -> None:
    stages = dense_layer("r1-distill-qwen-7b").stages
    weights = HIDDEN * (2 * HIDDEN + 2 * KV) + 3 * HIDDEN * WIDE
    assert weights == 233_046_016
    scores = 2 * TOKENS * 2048 * HIDDEN  # half the square, twice, two operations
    assert stages["forward, 2 passes"].tf32_flops == 2 * (2 * TOKENS * weights + scores)
    # Blocks of 256 rows up to the diagonal, one more than half.
    assert stages["Hessians"].tf32_flops == TOKENS * (
        3 * HIDDEN * (HIDDEN + 256) + WIDE * (WIDE + 256)
    )
    assert stages["factors"].flops == 3 * HIDDEN**3 + WIDE**3
    assert stages["weights to the GPU"].pcie_bytes == 2 * weights
    assert stages["states to the GPU and back"].pcie_bytes == 3 * 4 * TOKENS * HIDDEN


def test_a_layer_s_bytes_by_hand() -> None:
    """Of q, k, v, as the first pass of a sequence reads and writes them, and so on."""
    work = dense_layer("r1-distill-qwen-7b", n_tokens=2048, length=2048)
    linears = [(HIDDEN, HIDDEN + 2 * KV), (HIDDEN, HIDDEN), (HIDDEN, 2 * WIDE), (WIDE, HIDDEN)]
    products = sum(2048 * (width + rows) + width * rows for width, rows in linears)
    attention = 2048 * (2 * HIDDEN + 2 * KV)  # q, k, v, and what comes out
    assert work.stages["forward, 2 passes"].memory_bytes == 2 * 4 * (products + attention)
    # Each X, and half a Hessian read and written.
    hessians = sum(2048 * width + width**2 for width, _ in linears)
    assert work.stages["Hessians"].memory_bytes == 4 * hessians


def test_a_batch_of_experts_by_hand() -> None:
    """Of 256 experts a token visits eight: 8192 tokens each, and the 512 of the sample."""
    work = expert_batch("r1", n_experts=64)
    stages = {name: amounts * (1 / 64) for name, amounts in work.stages.items()}
    matrix = R1_HIDDEN * R1_WIDE
    forward = 2 * (2 * matrix) * (8192 + 512) + 2 * (3 * matrix) * 8192
    assert stages["forward, 2 passes"].tf32_flops == forward
    hessians = R1_HIDDEN * (R1_HIDDEN + 256) * 8192 + R1_WIDE * (R1_WIDE + 256) * (8192 + 512)
    assert stages["Hessians"].tf32_flops == hessians
    assert stages["weights to the GPU"].pcie_bytes == 3 * matrix
    assert stages["states to the GPU and back"].pcie_bytes == 4 * R1_HIDDEN * (3 * 8192 + 512)
    assert work.n_alike == 58 * 4
    assert work.n_columns == 8 * (R1_HIDDEN + R1_WIDE)  # eight groups of eight


def test_solving_adds_up_to_the_operations_of_r1_work() -> None:
    of = Input(width=1024, rows=(512, 256))
    parts = [factor(of.width), loop_inside(of), loop_behind(of), layer_error(of)]
    assert sum(part.flops + part.tf32_flops for part in parts) == pytest.approx(
        solve(of.rows, of.width).flops, rel=1e-3
    )


def test_bytes_and_kernels_of_the_loop_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    grid = get_grid("int4-g128-sym")
    of = Input(width=512, rows=(256,))
    x_TI = torch.randn(1024, of.width)
    visit = column_loop.plan_visit(x_TI.T @ x_TI / len(x_TI), grid.span, Order.STATIC, 0.01)
    weights = torch.randn(256, of.width)
    with CountedOperations() as counted:
        column_loop.solve_columns([weights], [visit], grid, Order.STATIC)
    lattice = grid.lattice(grid.fit(torch.randn(256, grid.span)), 256, grid.span)
    w_BEO, upper_BBE = torch.randn(BLOCK_COLUMNS, 1, 256), torch.eye(BLOCK_COLUMNS)[:, :, None]
    with CountedOperations() as block:
        column_loop._visit_block(w_BEO, upper_BBE, lattice, grid)
    assert sum(block.counts.values()) == COLUMN_KERNELS * BLOCK_COLUMNS
    blocks = of.width // BLOCK_COLUMNS
    assert loop_inside(of).memory_bytes == pytest.approx(
        blocks * sum(block.nbytes.values()), rel=0.01
    )
    # The products also read the block's errors and its rows of U, which is little in wide layers.
    assert counted.counts["addmm_"] == blocks
    errors, upper = of.n_weights, BLOCK_COLUMNS * sum(range(0, of.width, BLOCK_COLUMNS))
    assert counted.nbytes["addmm_"] == loop_behind(of).memory_bytes + 4 * (errors + upper)


def test_the_roof_is_the_highest_of_three() -> None:
    gpu = Gpu(title="", target="a100-80gb", cores=5000, boost_hz=1e9)  # 10 TFLOP/s, 1935 GB/s
    assert at_roof(Amounts(flops=3e13, memory_bytes=1.935e12), gpu) == (3.0, "compute")
    assert at_roof(Amounts(flops=3e13, memory_bytes=1.935e13), gpu) == (10.0, "bandwidth")
    faster = replace(gpu, tf32_times=8)
    assert at_roof(Amounts(flops=1e13, tf32_flops=8e13), faster) == (2.0, "compute")
    seconds, bound = at_roof(Amounts(flops=1.0, pcie_bytes=31.508e9), gpu)
    assert (seconds, bound) == (pytest.approx(1, rel=1e-4), "PCIe")


def test_the_peaks_are_those_of_the_data_sheets() -> None:
    """TFLOP/s of FP32; NVIDIA states none for the RTX 3060, whose 12.7 are others' arithmetic."""
    peaks = [gpu.flops_s / 1e12 for gpu in GPUS]
    assert peaks == pytest.approx([12.7, 12.7, 82.6, 19.5], rel=0.005)
    assert GPUS[-1].tf32_flops_s / 1e12 == pytest.approx(156, rel=0.005)
    assert [gpu.bytes_s / 1e9 for gpu in GPUS] == [240, 360, 1008, 1935]


def test_the_sections_say_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    text = roofline_sections()
    assert "Computed, not measured" in text
    work = dense_layer("r1-distill-qwen-7b")
    (row,) = (line for line in text.splitlines() if line.startswith("| all 28 layers"))
    minutes = [f"{28 * total_s(work, gpu) / 60:.1f} min" for gpu in GPUS]
    assert row.endswith(f"| {' | '.join(minutes)} |")
    tables = [line for line in text.splitlines() if line.startswith("| ") and "TFLOP |" in line]
    assert len(tables) == 2
    document = tmp_path / "performance.md"
    document.write_text("# Title\n")
    monkeypatch.setattr(roofline, "DOCUMENT", document)
    write_roofline()
    once = document.read_text()
    write_roofline()
    assert document.read_text() == once
