"""Packed blocks against gguf's dequantizer and ggml's, bit for bit, and back to the same bytes."""

import gguf
import numpy as np
import pytest
import torch
from support import ggml_library

from tightfit.quant.grids.ggml import GGML_GRIDS
from tightfit.quant.grids.ggml.base import GgmlGrid
from tightfit.quant.tensor import QuantizedTensor

ROWS, SPANS = 24, 3

# Where each type keeps its float16 values: byte offsets inside a block.
HALF_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip

every_grid = pytest.mark.parametrize("grid", GGML_GRIDS, ids=lambda grid: grid.name)


def random_blocks(grid: GgmlGrid, seed: int) -> np.ndarray:
    """Any bytes at all, except that the float16 values are finite (denormal and -0 included)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (ROWS * SPANS, grid.block_bytes), dtype=np.uint8)
    for offset in HALF_OFFSETS[grid.name]:
        half = blocks[:, offset : offset + 2].copy().view(np.float16)
        half[~np.isfinite(half)] = 1.0
        blocks[:, offset : offset + 2] = half.view(np.uint8)
    return blocks


def blocks_with_halves(grid: GgmlGrid, value: float, fill: int | None) -> np.ndarray:
    """Blocks whose float16 values are all `value`; other bytes `fill`, or random."""
    blocks = random_blocks(grid, seed=7)
    if fill is not None:
        blocks[:] = fill
    for offset in HALF_OFFSETS[grid.name]:
        blocks[:, offset : offset + 2] = np.array([value], dtype=np.float16).view(np.uint8)
    return blocks


def check_blocks(grid: GgmlGrid, blocks: np.ndarray) -> None:
    data = blocks.reshape(ROWS, -1)
    kind = gguf.GGMLQuantizationType[grid.name]
    quantized = grid.unpack(torch.from_numpy(data), (ROWS, SPANS * grid.span))
    values = grid.dequantize(quantized).numpy()
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(data, kind)
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))
    # A C compiler may fuse multiply and add (aarch64 does), so not bit for bit here.
    theirs = ggml_library.dequantize(grid.name, data, values.shape)
    np.testing.assert_allclose(values, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())
    np.testing.assert_array_equal(grid.pack(quantized).numpy(), data)


@every_grid
@pytest.mark.parametrize("seed", range(3))
def test_random_blocks(grid, seed):
    check_blocks(grid, random_blocks(grid, seed))


@every_grid
@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-24, -(2.0**-15), -0.5, 65504.0, -65504.0])
@pytest.mark.parametrize("fill", [None, 0x00, 0xFF, 0x0F, 0x80])
def test_adversarial_blocks(grid, value, fill):
    check_blocks(grid, blocks_with_halves(grid, value, fill))


@every_grid
def test_block_size_is_that_of_gguf(grid):
    kind = gguf.GGMLQuantizationType[grid.name]
    assert (grid.span, grid.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert grid.bits_per_weight((5, 512)) == grid.block_bytes * 8 / grid.span


@every_grid
@pytest.mark.parametrize("importance", [None, "random"])
def test_what_the_quantizer_makes_survives_packing(grid, importance):
    torch.manual_seed(0)
    w_OI = torch.randn(ROWS, SPANS * grid.span)
    w_OI[0] = 0
    importance_OI = None if importance is None else torch.rand(1, w_OI.shape[1])
    params = grid.fit(w_OI, importance_OI)
    codes_OI = grid.round(w_OI, grid.lattice(params, *w_OI.shape))
    shape = (ROWS, SPANS * grid.span)
    made = QuantizedTensor(grid=grid.name, shape=shape, codes_OI=codes_OI, params=params)
    back = grid.unpack(grid.pack(made), shape)
    assert torch.equal(back.codes_OI, made.codes_OI)
    assert back.params.keys() == made.params.keys()
    for name, part in made.params.items():
        assert back.params[name].dtype == part.dtype
        assert torch.equal(back.params[name], part), name
    assert torch.equal(grid.dequantize(back), grid.dequantize(made))


@every_grid
def test_memory_layout_of_codes_and_parameters_does_not_matter(grid):
    torch.manual_seed(0)
    shape = (ROWS, grid.span)
    params = grid.fit(torch.randn(shape))
    codes_OI = torch.randint(0, 4, shape, dtype=torch.uint8)
    plain = QuantizedTensor(grid=grid.name, shape=shape, codes_OI=codes_OI, params=params)
    strided = QuantizedTensor(
        grid=grid.name,
        shape=shape,
        codes_OI=codes_OI.T.contiguous().T,
        params={name: part.T.contiguous().T for name, part in params.items()},
    )
    assert torch.equal(grid.pack(strided), grid.pack(plain))


@pytest.mark.parametrize(("name", "low", "high"), [("Q3_K", -32, 31), ("Q6_K", -128, 127)])
def test_signed_scales_use_their_full_range(name, low, high):
    """A public GPTQ exporter stops one bit short here."""
    (grid,) = (grid for grid in GGML_GRIDS if grid.name == name)
    torch.manual_seed(0)
    scales = grid.fit(torch.randn(2000, 256))["scales"]
    assert scales.min() == low
    assert scales.max() > high - 8
    assert scales.abs().max(dim=1).values.float().mean() > 0.9 * high
