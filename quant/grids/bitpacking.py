"""Dense little-endian packing of 1- to 8-bit codes along the columns of a matrix.

Code j of a row occupies bits j*bits .. (j+1)*bits - 1 of that row; bit k is bit k % 8 of byte
k // 8. For 2, 4 and 8 bits this is the nibble order of MatMulNBits and of GPTQ's `qweight`; codes
of 3, 5, 6 and 7 bits cross byte borders without padding. A row ends on a byte border.

Shape legend: O rows, I columns, B bytes of a row.
"""

import numpy as np
import torch
from torch import Tensor

BITS_PER_BYTE = 8


def packed_bytes(n_codes: int, bits: int) -> int:
    """Bytes that a row of `n_codes` codes takes."""
    return -(-n_codes * bits // BITS_PER_BYTE)


def pack_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 (O, B) holding uint8 codes (O, I) below 2**bits."""
    codes = codes_OI.cpu().numpy()
    bits_OIb = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    packed = np.packbits(bits_OIb.reshape(codes.shape[0], -1), axis=1, bitorder="little")
    return torch.from_numpy(packed).to(codes_OI.device)


def unpack_codes(data_OB: Tensor, bits: int, n_codes: int) -> Tensor:
    """uint8 codes (O, I) from the first bytes of each row: the inverse of `pack_codes`."""
    data = data_OB[:, : packed_bytes(n_codes, bits)].contiguous().cpu().numpy()
    row_bits = np.unpackbits(data, axis=1, count=n_codes * bits, bitorder="little")
    bits_OIb = row_bits.reshape(data.shape[0], n_codes, bits)
    codes = torch.from_numpy(np.packbits(bits_OIb, axis=2, bitorder="little")[:, :, 0])
    return codes.to(data_OB.device)
