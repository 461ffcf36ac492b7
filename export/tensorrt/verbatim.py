"""Find matrices byte for byte inside an engine file, without knowing where it keeps them.

TensorRT for RTX stores a weight in one of three forms (seen in 1.7.1):

    rows       as the ONNX file has it, (O, I): INT4, embeddings, most of float16
    columns    transposed, (I, O): FP8 and INT8 that only the weights have
    strided    transposed, side by side with the matrices that read the same input, so that the
               columns lie a constant stride apart

Every matrix gives two probes, an 8-byte word of its rows and one of its first column. A pass over
the file, word by word, finds where any of them occurs; there every byte is compared. The weights of
an engine lie a multiple of 64 bytes apart, but begin anywhere, so the words of another pass begin
some bytes later until everything is found. A pass reads a gigabyte in about a second.

Shape legend: O output rows, I input columns; all in bytes of the stored elements.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_WORD_BYTES = 8
_SCANNED_WORDS = 1 << 22
"""32 MiB at a time."""
_PROBE_WORDS = 64
"""Words to choose a distinctive one from."""
_MOST_SIDE_BY_SIDE = 128
"""Largest stride, in columns of the matrix: a key beside the queries of that many heads."""
_COMPARED_BYTES = 1 << 24
_TABLE_BITS = 16
_SHIFTS = (0, 4, 2, 6, 1, 3, 5, 7)
"""Where the words of each pass begin, the usual ones first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matrix:
    """What to look for."""

    data: Bytes
    """Its bytes in row order."""
    shape: tuple[int, int]
    """Rows and columns in elements."""
    whole_bytes: bool
    """Whether an element is one byte, so that it may be transposed; else only rows are sought."""


def find_verbatim(path: Path, matrices: Mapping[str, Matrix]) -> frozenset[str]:
    """Names of the matrices that lie in the file byte for byte, in any of the three forms."""
    plan = np.memmap(path, dtype=np.uint8, mode="r")
    probes: defaultdict[int, list[tuple[str, bool, int]]] = defaultdict(list)
    for name, matrix in matrices.items():
        for by_columns in (False, True) if matrix.whole_bytes else (False,):
            line = matrix.data[:: matrix.shape[1]] if by_columns else matrix.data
            if line.size >= _WORD_BYTES:
                word, offset = _distinctive_word(line)
                probes[word].append((name, by_columns, offset))
    words = np.array(sorted(probes), dtype="<u8")
    found: set[str] = set()
    for shift in _SHIFTS:
        for place, word in _occurrences(plan, words, shift):
            for name, by_columns, offset in probes[word]:
                start = place - offset
                if name not in found and _lies_at(
                    plan, start, matrices[name], by_columns=by_columns
                ):
                    found.add(name)
        if len(found) == len(matrices):
            break
    return frozenset(found)


def _distinctive_word(line: Bytes) -> tuple[int, int]:
    """The word with the most different bytes near the beginning, and its offset."""
    head = np.ascontiguousarray(line[: _PROBE_WORDS * _WORD_BYTES])
    words = head[: head.size // _WORD_BYTES * _WORD_BYTES].reshape(-1, _WORD_BYTES)
    different = [len(set(word.tolist())) for word in words]
    best = int(np.argmax(different))
    return int(words[best].view("<u8")[0]), best * _WORD_BYTES


def _occurrences(plan: Bytes, words: NDArray[np.uint64], shift: int) -> Iterator[tuple[int, int]]:
    """Where any of the words lies, `shift` bytes after a multiple of 8, and which."""
    table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
    table[(words & np.uint64(len(table) - 1)).astype(np.intp)] = True
    shifted = plan[shift:]
    all_words = shifted[: shifted.size // _WORD_BYTES * _WORD_BYTES].view("<u8")
    for first in range(0, all_words.size, _SCANNED_WORDS):
        chunk = np.array(all_words[first : first + _SCANNED_WORDS])
        # Most words differ in their low bits already.
        likely = np.flatnonzero(table[chunk.view("<u2")[:: _WORD_BYTES // 2]])
        for index in likely[np.isin(chunk[likely], words)]:
            yield shift + (first + int(index)) * _WORD_BYTES, int(chunk[index])


def _lies_at(plan: Bytes, start: int, matrix: Matrix, *, by_columns: bool) -> bool:
    if start < 0:
        return False
    if not by_columns:
        return _equal(plan[start : start + matrix.data.size], matrix.data)
    values_OI = matrix.data.reshape(matrix.shape)
    n_rows, n_columns = matrix.shape
    if not _equal(plan[start : start + n_rows], values_OI[:, 0]):
        return False
    stride = _column_stride(plan, start, values_OI)
    end = start + (n_columns - 1) * stride + n_rows
    if stride == 0 or end > plan.size:
        return False
    columns_IO = np.lib.stride_tricks.as_strided(
        plan[start:end], (n_columns, n_rows), (stride, 1), writeable=False
    )
    step = max(1, _COMPARED_BYTES // n_rows)
    return all(
        np.array_equal(columns_IO[first : first + step], values_OI[:, first : first + step].T)
        for first in range(0, n_columns, step)
    )


def _column_stride(plan: Bytes, start: int, values_OI: Bytes) -> int:
    """How far the second column lies from the first; 0 when it does not follow."""
    n_rows, n_columns = int(values_OI.shape[0]), int(values_OI.shape[1])
    if n_columns == 1:
        return n_rows
    window = plan[start + n_rows : start + (_MOST_SIDE_BY_SIDE + 1) * n_rows].tobytes()
    position = window.find(values_OI[:, 1].tobytes())
    return 0 if position < 0 else position + n_rows


def _equal(stored: Bytes, wanted: Bytes) -> bool:
    if stored.size != wanted.size:
        return False
    step = _COMPARED_BYTES
    return all(
        np.array_equal(stored[first : first + step], wanted[first : first + step])
        for first in range(0, wanted.size, step)
    )
