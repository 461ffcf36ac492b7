"""Packed codes against one big number per row, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightfit.quant.grids.bitpacking import pack_codes, packed_bytes, unpack_codes


def slow_pack(codes: list[int], bits: int) -> list[int]:
    """One big number, the first code in its low bits."""
    number = sum(code << (place * bits) for place, code in enumerate(codes))
    return list(number.to_bytes(-(-len(codes) * bits // 8), "little"))


@given(
    rows=st.integers(1, 4), columns=st.integers(1, 40), bits=st.integers(1, 8), seed=st.integers(0)
)
def test_rows_are_big_numbers(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack_codes(codes, bits)
    assert packed.tolist() == [slow_pack(row, bits) for row in codes.tolist()]
    assert packed.shape == (rows, packed_bytes(columns, bits))
    assert packed.is_contiguous()
    # What follows in a row, as a grid's parameters do, is left alone.
    following = torch.full((rows, 3), 255, dtype=torch.uint8)
    unpacked = unpack_codes(torch.cat([packed, following], dim=1), bits, columns)
    assert torch.equal(unpacked, codes)
    assert unpacked.is_contiguous()


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacked_codes_do_not_share_the_packed_bytes(bits: int) -> None:
    packed = torch.full((2, packed_bytes(16, bits)), 255, dtype=torch.uint8)
    codes = unpack_codes(packed, bits, 16)
    packed.zero_()
    assert (codes == (1 << bits) - 1).all()
