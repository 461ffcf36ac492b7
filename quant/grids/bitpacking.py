"""Dense little-endian packing of 1- to 8-bit codes along the columns of a matrix.

Code j of a row occupies bits j*bits .. (j+1)*bits - 1 of that row; bit k is bit k % 8 of byte
k // 8. For 2, 4 and 8 bits this is the nibble order of MatMulNBits and of GPTQ's `qweight`; codes
of 3, 5, 6 and 7 bits cross byte borders without padding. A row ends on a byte border.

The places of the codes repeat with the smallest run of them that ends on a byte border (two of 4
bits, eight of 3 bits), so every place of the run is moved by one shift for the whole matrix.

Shape legend: O rows, I columns, B bytes of a row, R runs of a row, P places of a run, Q bytes of a
run.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BITS_PER_BYTE = 8


def packed_bytes(n_codes: int, bits: int) -> int:
    """Bytes that a row of `n_codes` codes takes."""
    return -(-n_codes * bits // BITS_PER_BYTE)


def pack_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 (O, B) holding uint8 codes (O, I) below 2**bits."""
    n_rows, n_codes = codes_OI.shape
    n_places, run_bytes = _run(bits)
    n_runs = -(-n_codes // n_places)
    codes = _padded(codes_OI.cpu().numpy(), n_runs * n_places)
    codes_ORP = codes.reshape(n_rows, n_runs, n_places)
    packed_ORQ = np.zeros((n_rows, n_runs, run_bytes), dtype=np.uint8)
    for place in range(n_places):
        byte, shift = divmod(place * bits, BITS_PER_BYTE)
        packed_ORQ[:, :, byte] |= codes_ORP[:, :, place] << np.uint8(shift)
        if shift + bits > BITS_PER_BYTE:
            packed_ORQ[:, :, byte + 1] |= codes_ORP[:, :, place] >> np.uint8(BITS_PER_BYTE - shift)
    packed_OB = packed_ORQ.reshape(n_rows, -1)[:, : packed_bytes(n_codes, bits)]
    return torch.from_numpy(packed_OB).contiguous().to(codes_OI.device)


def unpack_codes(data_OB: Tensor, bits: int, n_codes: int) -> Tensor:
    """uint8 codes (O, I) from the first bytes of each row: the inverse of `pack_codes`."""
    n_rows = data_OB.shape[0]
    n_places, run_bytes = _run(bits)
    n_runs = -(-n_codes // n_places)
    data = data_OB[:, : packed_bytes(n_codes, bits)].cpu().numpy()
    data_ORQ = _padded(data, n_runs * run_bytes).reshape(n_rows, n_runs, run_bytes)
    codes_ORP = np.empty((n_rows, n_runs, n_places), dtype=np.uint8)
    for place in range(n_places):
        byte, shift = divmod(place * bits, BITS_PER_BYTE)
        codes_OR = data_ORQ[:, :, byte] >> np.uint8(shift)
        if shift + bits > BITS_PER_BYTE:
            codes_OR |= data_ORQ[:, :, byte + 1] << np.uint8(BITS_PER_BYTE - shift)
        np.bitwise_and(codes_OR, np.uint8((1 << bits) - 1), out=codes_ORP[:, :, place])
    codes_OI = codes_ORP.reshape(n_rows, -1)[:, :n_codes]
    return torch.from_numpy(codes_OI).contiguous().to(data_OB.device)


def _padded(rows: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Rows with zeros behind them, not copied where they are as wide already."""
    missing = width - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _run(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest run that ends on a byte border."""
    shared = math.gcd(bits, BITS_PER_BYTE)
    return BITS_PER_BYTE // shared, bits // shared
