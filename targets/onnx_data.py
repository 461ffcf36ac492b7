"""Bytes of the data file beside an ONNX model, from names and shapes alone.

    integer grid   O * I * bits / 8 codes, O * groups scales; asymmetric: zero points of `bits` bits
    FP8            O * I codes, float32 scales (one, one a row, or one a row and 128 columns)
    float          2 or 4 bytes each

Scales of integer grids have the width of what the graph computes in. MatMulNBits ends each row of
zero points on a whole byte. Tensors lie aligned, as `tightfit.export.onnx.graph` places them; an
act-order adds 8 bytes a column, which is not counted. Rotary angles are computed in the graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS, IntegerFacts

PRECISION_BYTES: Mapping[str, int] = {"float16": 2, "float32": 4}
"""What a graph computes in."""
_BITS_PER_BYTE = 8
_FLOAT8_SCALE_BYTES = 4
_PAGE_BYTES = 4096
_LARGE_BYTES = 1 << 20
_SMALL_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphKind:
    """As far as bytes depend on the graph."""

    precision: str
    """`float16` or `float32`."""
    own_operators: bool
    """onnxruntime's own operators (dialect `ort`), or the standard's only."""


def data_bytes(sizes: Iterable[int]) -> int:
    """Size of a file that holds parts of these sizes in this order."""
    end = 0
    for size in sizes:
        alignment = _alignment(size)
        end = -(-end // alignment) * alignment + size
    return end


def placed_bytes(size: int) -> int:
    """What one part adds to a file at most, with the gap before it."""
    return size + _alignment(size) - 1


def _alignment(size: int) -> int:
    return _PAGE_BYTES if size >= _LARGE_BYTES else _SMALL_ALIGNMENT_BYTES


def weight_sizes(stored_as: str, shape: Sequence[int], kind: GraphKind) -> list[int]:
    """Bytes of each part of a tensor: codes, scales and zero points, or its floats."""
    n_weights = prod(shape)
    if stored_as in FLOAT_BYTES:
        return [n_weights * FLOAT_BYTES[stored_as]]
    n_rows, width = shape
    if stored_as in FLOAT8:
        facts = FLOAT8[stored_as]
        n_columns = -(-width // facts.block_columns) if facts.block_columns else 1
        n_scales = n_rows * n_columns if facts.scale_per_row else 1
        return [n_weights, n_scales * _FLOAT8_SCALE_BYTES]
    return _integer_sizes(INTEGERS[stored_as], n_rows, width, kind)


def _integer_sizes(facts: IntegerFacts, n_rows: int, width: int, kind: GraphKind) -> list[int]:
    n_groups = facts.n_groups(width)
    sizes = [
        _packed_bytes(n_rows * width, facts.bits),
        n_rows * n_groups * PRECISION_BYTES[kind.precision],
    ]
    if facts.symmetric:
        return sizes
    if kind.own_operators and facts.group_size:
        return [*sizes, n_rows * _packed_bytes(n_groups, facts.bits)]
    return [*sizes, _packed_bytes(n_rows * n_groups, facts.bits)]


def _packed_bytes(n_codes: int, bits: int) -> int:
    return -(-n_codes * bits // _BITS_PER_BYTE)
