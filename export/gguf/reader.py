"""The `gguf` package's reader, with long arrays read at once.

The package makes three views of the mapped file for every token and merge: ten seconds for a
Llama 3 vocabulary. Here an array of numbers is one view and a string one slice of a memoryview;
everything else, the tensors above all, is the package's, once the header is found harmless.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType
from numpy.typing import NDArray

from tightfit.calib.gguf_header import check_gguf

_LENGTH_BYTES = 8
_TYPE_BYTES = 4


class ArrayReader(GGUFReader):
    """A `GGUFReader` whose array fields have their items in `contents()` and nowhere else."""

    def __init__(self, path: Path) -> None:
        """Open and check; raises `ValueError` with the reason when the file cannot be trusted."""
        check_gguf(path)
        super().__init__(path)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[NDArray[np.generic]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data
        item_type = GGUFValueType(_integer(data, orig_offs, _TYPE_BYTES))
        count = _integer(data, orig_offs + _TYPE_BYTES, _LENGTH_BYTES)
        start = orig_offs + _TYPE_BYTES + _LENGTH_BYTES
        types = [GGUFValueType.ARRAY, item_type]
        if item_type is GGUFValueType.STRING:
            strings, end = _strings(data, start, count)
            # `contents` asks a part for nothing but `tobytes`, which a memoryview has too.
            return end - orig_offs, strings, list(range(count)), types  # type: ignore[return-value]
        numbers = self._get(start, self.gguf_scalar_to_np[item_type], count)
        return start + numbers.nbytes - orig_offs, [numbers], [0], types


def _integer(data: memoryview, start: int, n_bytes: int) -> int:
    return int.from_bytes(data[start : start + n_bytes], "little")


def _strings(data: memoryview, start: int, count: int) -> tuple[list[memoryview], int]:
    """`count` strings and the offset behind them."""
    strings, at = [], start
    for _ in range(count):
        begin = at + _LENGTH_BYTES
        at = begin + _integer(data, at, _LENGTH_BYTES)
        strings.append(data[begin:at])
    return strings, at
