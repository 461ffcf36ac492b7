"""FP8 grids against the definition of E4M3, torch's float8 and compressed-tensors' reader."""

import itertools

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Lattice
from tightfit.quant.grids.float8 import FLOAT8_GRIDS

GRIDS = {grid.name: grid for grid in FLOAT8_GRIDS}
NAN_CODES = (0x7F, 0xFF)


def e4m3_value(code: int) -> float:
    """OCP FP8 specification, section 5.1: 1 sign, 4 exponent (bias 7), 3 mantissa bits."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def weights(shape: tuple[int, int] = (200, 300), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator) * 0.02
    return w * torch.exp(torch.randn(shape[0], 1, generator=generator))


def test_names() -> None:
    assert set(GRIDS) == {"fp8-e4m3-tensor", "fp8-e4m3-channel", "fp8-e4m3-block128"}


def test_decodes_every_code_by_the_definition() -> None:
    codes = [code for code in range(256) if code not in NAN_CODES]
    expected = torch.tensor([[e4m3_value(code) for code in codes]])
    tensor = torch.tensor([codes], dtype=torch.uint8)
    unit = Lattice(scale_OK=torch.ones(1, len(codes)))
    assert torch.equal(GRIDS["fp8-e4m3-tensor"].decode(tensor, unit), expected)


def test_rounds_to_the_nearest_code_ties_to_even() -> None:
    positive = [e4m3_value(code) for code in range(0x7F)]
    ties = [(a + b) / 2 for a, b in itertools.pairwise(positive)]
    values = torch.tensor([*positive, *ties, 1e-9, 449.0, 1e30, *torch.rand(500).mul(500).tolist()])
    unit = Lattice(scale_OK=torch.ones(1, 1))
    codes = GRIDS["fp8-e4m3-tensor"].round(values[None], unit)[0].tolist()
    for value, code in zip(values.tolist(), codes, strict=True):
        reachable = min(value, 448.0)
        nearest = min(range(0x7F), key=lambda c: (abs(positive[c] - reachable), c & 1))
        assert code == nearest, (value, code, nearest)


def naive_block_scales(w: Tensor, rows: int, columns: int) -> Tensor:
    n_rows, n_columns = w.shape
    return torch.tensor(
        [
            [
                w[top : top + rows, left : left + columns].abs().max().item() / 448
                for left in range(0, n_columns, columns)
            ]
            for top in range(0, n_rows, rows)
        ]
    )


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("fp8-e4m3-tensor", 200, 300),
        ("fp8-e4m3-channel", 1, 300),
        ("fp8-e4m3-block128", 128, 128),
    ],
)
def test_plain_scales_and_values_by_naive_loops(name: str, rows: int, columns: int) -> None:
    w = weights()
    tensor = rtn(w, GRIDS[name])
    scale = naive_block_scales(w, rows, columns)
    assert tensor.params["scale"].dtype == torch.float32
    torch.testing.assert_close(tensor.params["scale"], scale, rtol=1e-6, atol=0)
    value = GRIDS[name].dequantize(tensor)
    for row, column in ((0, 0), (127, 128), (128, 127), (199, 299), (150, 260)):
        block = tensor.params["scale"][row // rows, column // columns]
        code = int(tensor.codes_OI[row, column])
        assert value[row, column] == block * e4m3_value(code)
    # Half a step of 3 mantissa bits, and half the smallest subnormal of the largest scale.
    assert ((value - w).abs() <= w.abs() / 16 + scale.max() * 2.0**-10).all()


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("fp8-e4m3-tensor", {"strategy": "tensor"}),
        ("fp8-e4m3-channel", {"strategy": "channel"}),
        ("fp8-e4m3-block128", {"strategy": "block", "block_structure": [128, 128]}),
    ],
)
def test_compressed_tensors_reads_the_same_numbers(name: str, strategy: dict[str, object]) -> None:
    tensor = rtn(weights((256, 384)), GRIDS[name], torch.rand(384))
    theirs = their_dequantize(
        tensor.codes_OI.view(torch.float8_e4m3fn),
        tensor.params["scale"],
        args=QuantizationArgs(num_bits=8, type="float", symmetric=True, **strategy),
    )
    assert torch.equal(GRIDS[name].dequantize(tensor), theirs)


@pytest.mark.parametrize("name", GRIDS)
def test_pack_round_trip_and_exact_size(name: str) -> None:
    grid = GRIDS[name]
    tensor = rtn(weights(), grid)
    back = grid.unpack(grid.pack(tensor), tensor.shape)
    assert torch.equal(back.codes_OI, tensor.codes_OI)
    assert torch.equal(back.params["scale"], tensor.params["scale"])
    stored_bits = 8 * tensor.codes_OI.numel() + 32 * tensor.params["scale"].numel()
    assert grid.bits_per_weight(tensor.shape) == pytest.approx(stored_bits / (200 * 300), rel=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    grid = GRIDS[name]
    w = weights()
    weight = torch.exp(2 * torch.randn(300, generator=torch.Generator().manual_seed(1)))

    def error(importance: Tensor | None) -> float:
        return ((grid.dequantize(rtn(w, grid, importance)) - w) ** 2 * weight).sum().item()

    assert error(weight) < error(None)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("kind", ["zero", "one outlier", "denormal", "huge"])
def test_adversarial_weights_never_make_a_nan_code(name: str, kind: str) -> None:
    w = {
        "zero": torch.zeros(130, 140),
        "one outlier": torch.full((130, 140), 1e-3).index_fill_(1, torch.tensor([5]), -1e6),
        "denormal": torch.full((130, 140), 1e-41),
        "huge": torch.full((130, 140), 3e38),
    }[kind]
    for importance in (None, torch.ones(140)):
        tensor = rtn(w, GRIDS[name], importance)
        assert not sum((tensor.codes_OI == code).sum() for code in NAN_CODES)
        assert torch.isfinite(GRIDS[name].dequantize(tensor)).all()


def test_refuses_what_is_not_finite() -> None:
    w = weights()
    w[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        rtn(w, GRIDS["fp8-e4m3-block128"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_refuses_an_importance_that_is_none(bad: float) -> None:
    importance = torch.ones(1, 64)
    importance[0, 5] = bad
    with pytest.raises(QuantizationError, match="1 of 64 importances"):
        GRIDS["fp8-e4m3-channel"].fit(torch.ones(2, 64), importance)
