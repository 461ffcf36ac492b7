"""Integer grids against brute force, an exhaustive search, and compressed-tensors' own code."""

import itertools

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grids.integer import INTEGER_GRIDS, IntegerGrid
from tightfit.quant.tensor import QuantizedTensor

GRIDS = {grid.name: grid for grid in INTEGER_GRIDS}
WIDTH = 256


def weights(n_rows: int = 16, n_columns: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n_rows, n_columns, generator=generator) * 0.02
    return w * torch.exp(torch.randn(n_rows, 1, generator=generator))


def importance(n_columns: int = WIDTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(2 * torch.randn(1, n_columns, generator=generator))


def test_names() -> None:
    sizes = ("g32", "g64", "g128", "channel")
    expected = {
        f"int{bits}-{size}-{sign}"
        for bits, size, sign in itertools.product(range(2, 9), sizes, ("sym", "asym"))
    }
    assert set(GRIDS) == expected
    assert len(INTEGER_GRIDS) == len(expected)


@pytest.mark.parametrize("name", GRIDS)
def test_rounds_to_the_nearest_of_all_levels(name: str) -> None:
    grid = GRIDS[name]
    assert isinstance(grid, IntegerGrid)
    w = weights()
    tensor = rtn(w, grid)
    assert tensor.params["scale"].dtype == torch.float16
    group = grid.group_size or WIDTH
    scale = tensor.params["scale"].double().repeat_interleave(group, 1)
    zero = torch.full_like(scale, 2 ** (grid.bits - 1))
    if not grid.symmetric:
        assert tensor.params["zero"].dtype == torch.uint8
        assert int(tensor.params["zero"].max()) < 2**grid.bits
        zero = tensor.params["zero"].double().repeat_interleave(group, 1)
    levels = scale[..., None] * (torch.arange(2**grid.bits) - zero[..., None])
    nearest = (w[..., None].double() - levels).abs().amin(dim=2)
    value = grid.dequantize(tensor)
    assert torch.equal(
        value.double(), levels.gather(2, tensor.codes_OI.long()[..., None])[..., 0]
    ), "the float32 values must be the exact products"
    torch.testing.assert_close((w - value).abs().double(), nearest, rtol=1e-5, atol=1e-9)


def weighted_error(grid: IntegerGrid, w: Tensor, weight: Tensor) -> Tensor:
    """Per row and group, in float64."""
    tensor = rtn(w, grid, weight[0])
    squared = (grid.dequantize(tensor).double() - w.double()) ** 2 * weight
    return squared.reshape(w.shape[0], -1, grid.group_size).sum(dim=2)


def exhaustive_error(grid: IntegerGrid, w: Tensor, weight: Tensor) -> Tensor:
    """The least error over 800 scales and all zero points."""
    groups = w.double().reshape(w.shape[0], -1, grid.group_size)
    weight = weight.double().reshape(1, -1, grid.group_size)
    top = 2**grid.bits - 1
    zeros = [2 ** (grid.bits - 1)] if grid.symmetric else range(top + 1)
    full = groups.abs().amax(dim=2, keepdim=True) / (top / 2)
    best = torch.full(groups.shape[:2], torch.inf, dtype=torch.float64)
    for factor, zero in itertools.product(torch.linspace(0.2, 1.6, 800).tolist(), zeros):
        scale = (full * factor).half().double()
        steps = (groups / scale).round().clamp(-zero, top - zero)
        error = ((steps * scale - groups) ** 2 * weight).sum(dim=2)
        best = torch.minimum(best, error)
    return best


@pytest.mark.parametrize(
    "name", ["int2-g32-sym", "int2-g32-asym", "int3-g32-asym", "int4-g32-sym", "int4-g128-asym"]
)
def test_fit_is_close_to_an_exhaustive_search(name: str) -> None:
    grid = GRIDS[name]
    assert isinstance(grid, IntegerGrid)
    w, weight = weights(n_rows=8), importance()
    ours, best = weighted_error(grid, w, weight).sum(), exhaustive_error(grid, w, weight).sum()
    assert ours < 1.06 * best


@pytest.mark.parametrize("name", GRIDS)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    grid = GRIDS[name]
    w, weight = weights(), importance()

    def error(tensor: QuantizedTensor) -> float:
        return ((grid.dequantize(tensor) - w) ** 2 * weight).sum().item()

    assert error(rtn(w, grid, weight[0])) < error(rtn(w, grid))


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_codes_are_compressed_tensors_bytes(bits: int) -> None:
    grid = GRIDS[f"int{bits}-g32-sym"]
    tensor = rtn(weights(), grid)
    signed = (tensor.codes_OI.int() - 2 ** (bits - 1)).to(torch.int8)
    theirs = pack_to_int32(signed, bits).view(torch.uint8)
    assert torch.equal(grid.pack(tensor)[:, : WIDTH * bits // 8], theirs)


@pytest.mark.parametrize("name", GRIDS)
def test_pack_round_trip_and_exact_size(name: str) -> None:
    grid = GRIDS[name]
    tensor = rtn(weights(), grid)
    data = grid.pack(tensor)
    assert data.dtype == torch.uint8
    assert grid.bits_per_weight(tensor.shape) == 8 * data.numel() / tensor.codes_OI.numel()
    back = grid.unpack(data, tensor.shape)
    assert torch.equal(back.codes_OI, tensor.codes_OI)
    assert back.params.keys() == tensor.params.keys()
    for part, stored in tensor.params.items():
        assert torch.equal(back.params[part], stored)


@pytest.mark.parametrize("bits", [3, 5])
def test_packed_row_layout_bit_by_bit(bits: int) -> None:
    grid = GRIDS[f"int{bits}-channel-asym"]
    tensor = rtn(weights(n_rows=2, n_columns=37), grid)
    row = grid.pack(tensor)[1].tolist()
    stream = 0
    for position, code in enumerate(tensor.codes_OI[1].tolist()):
        stream |= code << (position * bits)
    n_bytes = -(-37 * bits // 8)
    scale = tensor.params["scale"][1].numpy().astype("<f2").tobytes()
    expected = stream.to_bytes(n_bytes, "little") + scale + bytes([tensor.params["zero"][1, 0]])
    assert bytes(row) == expected
    assert torch.equal(grid.unpack(grid.pack(tensor), (2, 37)).codes_OI, tensor.codes_OI)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_compressed_tensors_reads_the_same_numbers(bits: int, symmetric: bool) -> None:
    grid = GRIDS[f"int{bits}-g64-{'sym' if symmetric else 'asym'}"]
    tensor = rtn(weights(), grid)
    middle = 2 ** (bits - 1)
    zero = None if symmetric else tensor.params["zero"].int() - middle
    theirs = their_dequantize(
        tensor.codes_OI.int() - middle,
        tensor.params["scale"].float(),
        None if zero is None else zero.to(torch.int8),
        QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=64),
    )
    assert torch.equal(grid.dequantize(tensor), theirs)


@pytest.mark.parametrize("name", ["int2-g32-asym", "int4-g32-sym", "int8-channel-asym"])
@pytest.mark.parametrize("kind", ["zero", "one outlier", "denormal", "constant", "one sign"])
def test_adversarial_groups_stay_finite_and_near(name: str, kind: str) -> None:
    grid = GRIDS[name]
    w = {
        "zero": torch.zeros(2, 64),
        "one outlier": torch.zeros(2, 64).index_fill_(1, torch.tensor([5]), 1000.0),
        "denormal": torch.full((2, 64), 1e-40),
        "constant": torch.full((2, 64), -0.25),
        "one sign": torch.linspace(1, 2, 64).repeat(2, 1),
    }[kind]
    tensor = rtn(w, grid, torch.ones(64))
    value = grid.dequantize(tensor)
    assert (tensor.params["scale"] > 0).all(), "TensorRT refuses a zero scale"
    assert torch.isfinite(value).all()
    step = tensor.params["scale"].float().max()
    assert ((value - w).abs() <= 0.51 * step + 1e-3 * w.abs()).all()


def test_act_order_groups_are_honoured() -> None:
    grid = GRIDS["int4-g32-asym"]
    w = weights(n_columns=128)
    permutation = torch.from_numpy(np.random.default_rng(0).permutation(128))
    permuted = rtn(w[:, permutation], grid)
    group_index = torch.empty(128, dtype=torch.int32)
    group_index[permutation] = (torch.arange(128) // 32).int()
    codes = torch.empty_like(permuted.codes_OI)
    codes[:, permutation] = permuted.codes_OI
    stored = QuantizedTensor(
        grid=grid.name,
        shape=permuted.shape,
        codes_OI=codes,
        params=permuted.params,
        group_index_I=group_index,
    )
    assert torch.equal(grid.dequantize(stored)[:, permutation], grid.dequantize(permuted))


def test_refuses_widths_that_the_group_does_not_divide() -> None:
    with pytest.raises(QuantizationError, match="width 96 is not a multiple of 128") as caught:
        rtn(weights(n_columns=96), GRIDS["int4-g128-sym"])
    assert "divide 96: 32" in caught.value.allowed
    GRIDS["int4-channel-sym"].check_shape((3, 97))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    w = weights()
    w[3, 7] = bad
    with pytest.raises(QuantizationError, match="1 of 4096 weights"):
        rtn(w, GRIDS["int4-g32-sym"])


def test_refuses_weights_beyond_float16_scales() -> None:
    with pytest.raises(QuantizationError, match="out of the range of int4-g32-sym"):
        rtn(torch.full((1, 32), 1e6), GRIDS["int4-g32-sym"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_refuses_an_importance_that_is_none(bad: float) -> None:
    importance = torch.ones(1, 64)
    importance[0, 5] = bad
    with pytest.raises(QuantizationError, match="1 of 64 importances"):
        GRIDS["int4-g32-sym"].fit(torch.ones(2, 64), importance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["int4-g128-sym", "int4-g32-asym", "int8-channel-sym"])
def test_stored_codes_are_kept(name: str, dtype: torch.dtype) -> None:
    grid = GRIDS[name]
    tensor = rtn(weights(), grid)
    # Numbers that all three types hold.
    scale_OG = tensor.params["scale"].to(torch.bfloat16).to(dtype)
    zero_OG = tensor.params.get("zero", torch.full(scale_OG.shape, 1 << (grid.bits - 1)).byte())
    kept = grid.keep(tensor.codes_OI, scale_OG, zero_OG)
    n_groups = scale_OG.shape[1]
    wide = {"scale": scale_OG.double(), "zero": zero_OG.double()}
    wide = {key: of.repeat_interleave(WIDTH // n_groups, dim=1) for key, of in wide.items()}
    expected = wide["scale"] * (tensor.codes_OI.double() - wide["zero"])
    assert torch.equal(grid.dequantize(kept).double(), expected)


def test_a_scale_that_float16_lacks_is_refused() -> None:
    grid = GRIDS["int4-g128-sym"]
    codes_OI = torch.zeros(2, 128, dtype=torch.uint8)
    zero_OG = torch.full((2, 1), 8, dtype=torch.uint8)
    for scale in (1e-9, 1 / 3, 1e6):
        with pytest.raises(QuantizationError, match="1 of 2 scales are no float16"):
            grid.keep(codes_OI, torch.tensor([[0.5], [scale]]), zero_OG)


def test_a_symmetric_matrix_with_another_middle_is_refused() -> None:
    codes_OI = torch.zeros(1, 128, dtype=torch.uint8)
    with pytest.raises(QuantizationError, match="zero point of a symmetric 4-bit"):
        GRIDS["int4-g128-sym"].keep(
            codes_OI, torch.ones(1, 1), torch.full((1, 1), 7, dtype=torch.uint8)
        )
