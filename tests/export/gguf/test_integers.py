"""The `gguf` package reads the integer grids' own numbers from ggml blocks, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from tightfit.errors import QuantizationError
from tightfit.export.gguf.integers import to_ggml_rows
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.targets.formats import ggml_type
from tightfit.targets.schemes.ggml_types import row_bytes

TYPES = {4: Type.Q4_0, 5: Type.Q5_0, 8: Type.Q8_0}
GROUPS = {"g32": 32, "g64": 64, "g128": 128, "channel": 0}


def matrix(bits: int, group: str, shape: tuple[int, int], seed: int) -> QuantizedTensor:
    """Every code occurs and scales are of both signs, zero and subnormal."""
    random = np.random.default_rng(seed)
    n_groups = shape[1] // (GROUPS[group] or shape[1])
    scale_OG = random.standard_normal((shape[0], n_groups)).astype(np.float16)
    scale_OG.flat[0], scale_OG.flat[-1] = 0.0, -6e-8
    codes_OI = random.integers(0, 1 << bits, shape, dtype=np.uint8)
    codes_OI[:, : 1 << bits] = np.arange(1 << bits)[: shape[1]]
    return QuantizedTensor(
        grid=f"int{bits}-{group}-sym",
        shape=shape,
        codes_OI=torch.from_numpy(codes_OI),
        params={"scale": torch.from_numpy(scale_OG)},
    )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", TYPES)
def test_gguf_reads_the_quantizers_numbers(bits: int, group: str) -> None:
    tensor = matrix(bits, group, (7, 384), seed=bits)
    kind = ggml_type(tensor.grid)
    assert kind == TYPES[bits]
    rows = to_ggml_rows(tensor)
    assert rows.dtype == np.uint8
    assert rows.shape == (7, row_bytes(kind, 384))
    found = gguf.quants.dequantize(rows, kind)
    expected = get_grid(tensor.grid).dequantize(tensor).numpy()
    # Bits, because -0.0 equals 0.0.
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert (np.signbit(expected) & (expected == 0)).any()


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from(list(TYPES)),
    group=st.sampled_from(list(GROUPS)),
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_any_shape(bits: int, group: str, rows: int, groups: int, seed: int) -> None:
    tensor = matrix(bits, group, (rows, groups * (GROUPS[group] or 32)), seed)
    found = gguf.quants.dequantize(to_ggml_rows(tensor), TYPES[bits])
    expected = get_grid(tensor.grid).dequantize(tensor).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_our_own_block_grids_read_the_same() -> None:
    tensor = matrix(5, "g64", (3, 128), seed=1)
    blocks = get_grid("Q5_0")
    unpacked = blocks.unpack(torch.from_numpy(to_ggml_rows(tensor)), (3, 128))
    assert torch.equal(unpacked.codes_OI, tensor.codes_OI)
    assert torch.equal(unpacked.params["d"], tensor.params["scale"].repeat_interleave(2, dim=1))


def test_act_order_is_refused() -> None:
    tensor = matrix(4, "g32", (2, 64), seed=0)
    ordered = QuantizedTensor(
        grid=tensor.grid,
        shape=tensor.shape,
        codes_OI=tensor.codes_OI,
        params=tensor.params,
        group_index_I=torch.arange(64, dtype=torch.int32) % 2,
    )
    with pytest.raises(QuantizationError, match="int4-g32-sym matrix with act-order") as caught:
        to_ggml_rows(ordered)
    assert "without act-order" in caught.value.hint


def test_a_width_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(QuantizationError, match="Q8_0 cannot hold rows of 33 weights"):
        to_ggml_rows(matrix(8, "channel", (2, 33), seed=0))
