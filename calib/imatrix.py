"""llama.cpp's importance matrix: how much each column of a matrix matters, without calibrating.

`llama-imatrix` runs a model on a text and adds up the squares of what every matrix reads:

    importance_j = E[x_j**2] = in_sum2_j / counts

A stack of matrices has its rows one after the other:

    routed experts    in_sum2 (E, I), counts (E,): each expert's own tokens
    attn_k_b, _v_b    in_sum2 (H, I), counts (H,) or one for all heads, by the version
    from a .dat       one count for all experts; for one without tokens the old format holds a
                      row of ones

Three things are left to the reader, and all three are said in `remarks`. An expert without tokens
takes the mean over all tokens that its layer's other experts saw. A file of a build that ran
DeepSeek with one `attn_kv_b` has its importance for v_b, which reads the same latent, and nothing
for k_b. Builds between the two summed the first head of k_b and v_b only; llama.cpp refuses such
rows, and here they are passed over.

Shape legend: S matrices of a stack (experts or heads), I input columns.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import ANY_EXPERT, Architecture
from tightfit.calib.imatrix_file import StoredRow, open_imatrix_file, read_rows, some
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.errors import CalibrationError

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ImatrixEntry:
    """What the file holds for one tensor of the model."""

    name: str
    """In the file: a GGUF name."""
    offset_bytes: int
    """Of its sums, from the file's start."""
    rows: int
    """Rows of sums: experts or heads; 1 for a single matrix."""
    columns: int
    counts: tuple[float, ...]
    """Tokens of each row; one number where the rows share it."""
    uncovered: tuple[int, ...]
    """Rows without tokens, never all."""

    def count(self, row: int) -> np.float32:
        """Tokens of a row; float32 as stored."""
        return np.float32(self.counts[row if len(self.counts) > 1 else 0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Imatrix:
    """An importance matrix that fits a model. Sums stay in the file until they are asked for."""

    path: Path
    datasets: tuple[str, ...]
    """Texts that it was computed on, as the file names them."""
    n_chunks: int
    chunk_tokens: int
    """0 where an old file did not say."""
    shapes: Mapping[str, Shape]
    """Of the model's tensors by logical name."""
    entries: Mapping[str, ImatrixEntry]
    """By logical name."""
    missing: tuple[str, ...]
    """Linears of the model, by logical name, that the file has nothing for."""
    unused: tuple[str, ...]
    """Entries of the file that no tensor of the model takes."""

    def importance(self, name: str, part: int | None = None) -> Tensor | None:
        """E[x**2] of the inputs of a tensor by logical name, float32.

        (I,), or (S, I) for a stack of experts or heads; (I,) of one of them where `part` is its
        number, which reads no more of the file than it needs. None where the file has nothing.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if part is not None and entry.rows > 1 and part not in entry.uncovered:
            offset_bytes = entry.offset_bytes + part * entry.columns * _FLOAT_BYTES
            sums_1I = read_rows(self.path, offset_bytes, 1, entry.columns)
            return torch.from_numpy(sums_1I[0] / entry.count(part))
        means_SI = torch.from_numpy(self._means(entry))
        shape = self.shapes[name]
        if len(shape) == 2:
            return means_SI[0]
        means_SI = means_SI.expand(shape[0], shape[-1])
        return means_SI if part is None else means_SI[part]

    def _means(self, entry: ImatrixEntry) -> NDArray[np.float32]:
        """(S, I), rows without tokens filled."""
        sums_SI = read_rows(self.path, entry.offset_bytes, entry.rows, entry.columns)
        counts_S1 = np.array([[entry.count(row)] for row in range(entry.rows)], dtype=np.float32)
        covered_S = np.ones(entry.rows, dtype=bool)
        covered_S[list(entry.uncovered)] = False
        means_SI = np.empty_like(sums_SI)
        means_SI[covered_S] = sums_SI[covered_S] / counts_S1[covered_S]
        all_tokens = counts_S1[covered_S].sum(dtype=np.float64)
        means_SI[~covered_S] = sums_SI[covered_S].sum(axis=0, dtype=np.float64) / all_tokens
        return means_SI

    @property
    def uncovered(self) -> dict[str, tuple[int, ...]]:
        """Experts (or heads) that saw no token, by logical name."""
        return {name: entry.uncovered for name, entry in self.entries.items() if entry.uncovered}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the user: what the file lacks and what was not used of it."""
        said = []
        if self.missing:
            said.append(
                f"{self.path.name} has nothing for {len(self.missing)} matrices, which are rounded "
                f"without importance: {some(self.missing)}"
            )
        if self.uncovered:
            each = [f"{len(rows)} of {name}" for name, rows in self.uncovered.items()]
            said.append(
                f"{self.path.name} has experts that no token reached, and they take the mean of "
                f"their layer's others: {some(each)}"
            )
        if self.unused:
            said.append(f"not used of {self.path.name}: {some(self.unused)}")
        return tuple(said)


def read_imatrix(path: Path, architecture: Architecture, dimensions: ModelDimensions) -> Imatrix:
    """Open an importance matrix and check it, its numbers included, against the model.

    Raises `CalibrationError` for a file that is missing, damaged, in the old format or none of
    llama-imatrix, for sums that are NaN, infinite or negative, and for one of another model.
    """
    file = open_imatrix_file(path)
    shapes = tensor_shapes(architecture, dimensions)
    names = architecture.gguf_names(dimensions)
    entries: dict[str, ImatrixEntry] = {}
    taken: set[str] = set()
    for name, shape in shapes.items():
        stored = _stored_name(names[name], file.sums)
        if stored is None or len(shape) == 1:
            continue
        entry = _entry(path, stored, name, shape, file.sums[stored], file.counts[stored])
        if entry is not None:
            entries[name] = entry
            taken.add(stored)
    if not entries:
        raise CalibrationError(
            f"{path} has nothing for any matrix of a {dimensions.model_type} of "
            f"{dimensions.n_layers} layers; it has {some(list(file.sums))}",
            allowed="an importance matrix of the same model",
            hint="compute one with llama-imatrix, or leave it out",
        )
    return Imatrix(
        path=path,
        datasets=file.datasets,
        n_chunks=file.n_chunks,
        chunk_tokens=file.chunk_tokens,
        shapes={name: shapes[name] for name in entries},
        entries=entries,
        missing=tuple(name for name in _linears(architecture, dimensions) if name not in entries),
        unused=tuple(name for name in file.sums if name not in taken),
    )


def _stored_name(gguf_name: str, sums: Mapping[str, StoredRow]) -> str | None:
    """The entry whose inputs the tensor reads."""
    if gguf_name in sums:
        return gguf_name
    before_split = gguf_name.replace("attn_v_b.", "attn_kv_b.")
    return before_split if before_split in sums else None


def _entry(
    path: Path, stored: str, name: str, shape: Shape, sums: StoredRow, counts: StoredRow
) -> ImatrixEntry | None:
    """What the file holds for a tensor; None for heads of which it has the first only."""
    n_stacked, columns = math.prod(shape[:-2]), shape[-1]
    shared = "attn_kv_b." in stored
    rows = 1 if shared else n_stacked
    is_heads = len(shape) == 3 and ANY_EXPERT not in name
    if is_heads and not shared and sums.values.size == columns != n_stacked * columns:
        return None
    if sums.values.size != rows * columns or counts.values.size not in (1, rows):
        raise CalibrationError(
            f"{path}: {stored} has {sums.values.size} sums and {counts.values.size} counts; "
            f"{name} of shape {shape} needs {rows} times {columns} sums",
            allowed="an importance matrix of the same model",
            hint="compute one with llama-imatrix, or leave it out",
        )
    _check_numbers(path, stored, sums, counts)
    uncovered = _uncovered(sums.values.reshape(rows, columns), counts.values)
    if len(uncovered) == rows:
        return None
    return ImatrixEntry(
        name=stored,
        offset_bytes=sums.offset_bytes,
        rows=rows,
        columns=columns,
        counts=tuple(counts.values.tolist()),
        uncovered=uncovered,
    )


def _check_numbers(path: Path, stored: str, sums: StoredRow, counts: StoredRow) -> None:
    for what, values in (("sums", sums.values), ("counts", counts.values)):
        n_bad = int(values.size - np.count_nonzero(np.isfinite(values) & (values >= 0)))
        if n_bad:
            raise CalibrationError(
                f"{path}: {n_bad} of {values.size} {what} of {stored} are NaN, infinite or "
                "negative",
                allowed="sums of squares and counts of tokens: finite and not negative",
                hint="compute it again: an activation overflowed, or the file is damaged",
            )


def _uncovered(sums_SI: NDArray[np.float32], counts: NDArray[np.float32]) -> tuple[int, ...]:
    """Rows without tokens."""
    if counts.size == len(sums_SI):
        empty_S = counts == 0
    else:
        # Converted from a .dat, which has no counts by row and ones where there was no token.
        empty_S = (sums_SI == counts[0]).all(axis=1) | (counts[0] == 0)
    return tuple(np.flatnonzero(empty_S).tolist())


def _linears(architecture: Architecture, dimensions: ModelDimensions) -> Iterator[str]:
    """Matrices that are rounded, by logical name."""
    for layer in range(dimensions.n_layers):
        for linear in architecture.block_kind(layer, dimensions).linears:
            yield architecture.tensor(layer, f"{linear}.weight")
