import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from torch import Tensor

from tightfit.calib.float8_blocks import STRATEGIES, Float8Scheme, Strategy, dequantize

SHAPES = [(256, 384), (200, 130), (1, 128), (128, 1), (300, 576)]


def random_fp8(shape: tuple[int, int]) -> Tensor:
    """Every E4M3 value that is a number, in random order."""
    bits = torch.arange(256, dtype=torch.uint8)
    bits = bits[(bits & 0x7F) != 0x7F]
    chosen = bits[torch.randint(len(bits), shape, generator=torch.Generator().manual_seed(0))]
    return chosen.view(torch.float8_e4m3fn)


def random_scale(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_blocks_equal_the_formula_weight_by_weight(
    shape: tuple[int, int], block: tuple[int, int]
) -> None:
    q_OI = random_fp8(shape)
    scheme = Float8Scheme(suffix="_scale_inv", strategies=frozenset({"block"}), block=block)
    (scale_shape,) = scheme.scale_shapes(shape)
    scale_RC = random_scale(scale_shape)
    w_OI = dequantize(q_OI, scale_RC, block)
    assert w_OI.dtype == torch.float32
    for row in {0, shape[0] // 2, shape[0] - 1}:
        for column in range(shape[1]):
            expected = q_OI[row, column].float() * scale_RC[row // block[0], column // block[1]]
            assert w_OI[row, column] == expected


@pytest.mark.parametrize("scale_shape", [(200, 1), (1,)])
def test_rows_and_tensors_equal_compressed_tensors(scale_shape: tuple[int, ...]) -> None:
    q_OI = random_fp8((200, 96))
    scale = random_scale(scale_shape)
    strategy = "channel" if len(scale_shape) == 2 else "tensor"
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy)
    assert dequantize(q_OI, scale, None).equal(their_dequantize(q_OI, scale, args=args))


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1)])
def test_all_forms_of_one_scale_are_the_same(scale_shape: tuple[int, ...]) -> None:
    q_OI = random_fp8((8, 16))
    assert dequantize(q_OI, torch.full(scale_shape, 0.25), None).equal(q_OI.float() * 0.25)


def test_a_flat_scale_is_one_a_row_even_for_a_square_matrix() -> None:
    q_OI = random_fp8((8, 8))
    scale_O = random_scale((8,))
    assert dequantize(q_OI, scale_O, None).equal(q_OI.float() * scale_O[:, None])


def test_as_many_blocks_as_rows_are_still_blocks() -> None:
    # o_proj of DeepSeek-R1: 7168 rows, and 56 x 128 = 7168 blocks.
    q_OI = random_fp8((4, 16))
    scale_RC = random_scale((2, 2))
    expected = q_OI.float() * scale_RC.repeat_interleave(2, dim=0).repeat_interleave(8, dim=1)
    assert dequantize(q_OI, scale_RC, (2, 8)).equal(expected)


def test_bfloat16_scales_multiply_in_float32() -> None:
    q_OI = random_fp8((4, 4))
    scale = random_scale((4, 1)).to(torch.bfloat16)
    assert dequantize(q_OI, scale, None).equal(q_OI.float() * scale.float())


@pytest.mark.parametrize("scale_shape", [(8, 8), (1024, 1)])
def test_nothing_as_large_as_the_result_is_made_beside_it(scale_shape: tuple[int, int]) -> None:
    q_OI, scale = random_fp8((1024, 1024)), random_scale(scale_shape)
    with torch.profiler.profile(profile_memory=True) as profile:
        w_OI = dequantize(q_OI, scale, (128, 128))
    made_bytes = [
        event.self_cpu_memory_usage
        for event in profile.events()
        if event.name != "[memory]" and event.self_cpu_memory_usage > 0
    ]
    assert max(made_bytes) == w_OI.nbytes
    assert sum(made_bytes) < 1.1 * w_OI.nbytes


@pytest.mark.parametrize(
    ("strategies", "scale_shape", "name"),
    [
        ({"block"}, (2, 3), "fp8-e4m3-block128"),
        ({"block"}, (1, 1), "fp8-e4m3-block128"),
        ({"tensor", "channel"}, (), "fp8-e4m3-tensor"),
        ({"tensor", "channel"}, (1,), "fp8-e4m3-tensor"),
        ({"tensor", "channel"}, (200, 1), "fp8-e4m3-channel"),
        ({"channel", "block"}, (200,), "fp8-e4m3-channel"),
        ({"channel", "block"}, (2, 3), "fp8-e4m3-block128"),
        ({"channel"}, (1, 1), "fp8-e4m3-channel"),
    ],
)
def test_the_grid_is_named_by_what_shares_a_scale(
    strategies: set[Strategy], scale_shape: tuple[int, ...], name: str
) -> None:
    scheme = Float8Scheme(suffix="_scale", strategies=frozenset(strategies), block=(128, 128))
    n_rows = 1 if scale_shape == (1, 1) else 200
    assert scheme.grid(scale_shape, n_rows) == name


@pytest.mark.parametrize("shape", [(), (1,), (300,), (300, 1), (3, 2)])
@pytest.mark.parametrize("rows", [slice(0, 128), slice(128, 300), slice(256, 999), slice(None)])
def test_some_rows_have_their_own_scales(shape: tuple[int, ...], rows: slice) -> None:
    generator = torch.Generator().manual_seed(0)
    q_OI = torch.randn(300, 200, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=generator) + 0.5
    scheme = Float8Scheme(suffix="_scale", strategies=frozenset(STRATEGIES), block=(128, 128))
    some = dequantize(q_OI[rows], scheme.scale_rows(scale, rows, len(q_OI)), scheme.block)
    assert torch.equal(some, dequantize(q_OI, scale, scheme.block)[rows])
