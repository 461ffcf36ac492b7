"""The KV cache of several sequences, bound to the session so that it is never copied through numpy.

Two kinds, by what the graph does with it:

`InPlaceCache`, for GroupQueryAttention: one buffer a tensor is past and present. Every sequence is
a row of `context_tokens` places; its tokens lie at the beginning of the row, and the mask says only
how many there are. A prompt is read into its own row, in chunks, by the row's address.

`GrowingCache`, for graphs that concatenate: the present outputs are bound as the next past inputs.
All rows have the same width, so a row has gaps, which the mask hides. Rows are packed anew, through
numpy, only when one of them begins or ends.

Shape legend: B rows (sequences), S new tokens, W places of the cache, H heads, D width of a head,
T tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tightfit.runtimes.base import chunk_tokens
from tightfit.runtimes.batching import Cache, Logits
from tightfit.runtimes.onnx.session import CacheTensor, LoadedModel, failures_of

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

_LOGITS = "logits"


def new_cache(model: LoadedModel, *, rows: int, context_tokens: int) -> Cache:
    """An empty cache for up to `rows` sequences."""
    if model.facts.in_place_cache:
        return InPlaceCache(model, rows=rows, context_tokens=context_tokens)
    return GrowingCache(model)


class InPlaceCache:
    """Past and present in the same place."""

    def __init__(self, model: LoadedModel, *, rows: int, context_tokens: int) -> None:
        self._model = model
        self._context_tokens = context_tokens
        self._buffers = {
            tensor.past: _on_device(
                np.zeros((rows, tensor.heads, context_tokens, tensor.width), tensor.dtype), model
            )
            for tensor in model.cache
        }
        self.lengths: list[int] = []

    def read(self, row: int, tokens: Sequence[int]) -> Iterator[Logits]:
        """As in `Cache`."""
        if row == len(self.lengths):
            self.lengths.append(0)
        self.lengths[row] = 0
        n_chunk = chunk_tokens(self._model.vocab_size)
        for start in range(0, len(tokens), n_chunk):
            ids_1S = np.array([tokens[start : start + n_chunk]], np.int64)
            self.lengths[row] += ids_1S.shape[1]
            mask_1W = np.ones((1, self.lengths[row]), np.int64)
            yield self._run(row, ids_1S, mask_1W)[0]

    def step(self, tokens_B: Sequence[int]) -> Logits:
        """As in `Cache`."""
        self.lengths = [length + 1 for length in self.lengths]
        lengths_B = np.array(self.lengths)
        mask_BW = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        return self._run(0, np.array(tokens_B, np.int64)[:, None], mask_BW)[:, 0]

    def remove(self, row: int) -> None:
        """As in `Cache`."""
        last = len(self.lengths) - 1
        if row != last:
            for name, buffer in self._buffers.items():
                # A copy: on the CPU `numpy` is a view, and what it shows goes with the old buffer.
                array_BHWD = buffer.numpy().copy()
                array_BHWD[row] = array_BHWD[last]
                self._buffers[name] = _on_device(array_BHWD, self._model)
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _run(self, first_row: int, ids_BS: NDArray[np.int64], mask_BW: NDArray[np.int64]) -> Logits:
        binding = _bind_tokens(self._model, ids_BS, mask_BW)
        for tensor in self._model.cache:
            row_bytes = tensor.token_bytes * self._context_tokens
            place = (
                self._model.device,
                0,
                tensor.dtype,
                (len(ids_BS), tensor.heads, self._context_tokens, tensor.width),
                self._buffers[tensor.past].data_ptr() + first_row * row_bytes,
            )
            binding.bind_input(tensor.past, *place)
            binding.bind_output(tensor.present, *place)
        return _run(self._model, binding)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Rows:
    """Cache tensors of some rows, and which of their places hold a token."""

    values: Mapping[str, "OrtValue"]
    """(B, H, W, D) by name of the input."""
    mask_BW: NDArray[np.int64]


class GrowingCache:
    """Every run's present is the next run's past."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._rows = self._empty_row()
        self.lengths: list[int] = []

    def read(self, row: int, tokens: Sequence[int]) -> Iterator[Logits]:
        """As in `Cache`."""
        new = self._empty_row()
        n_chunk = chunk_tokens(self._model.vocab_size)
        for start in range(0, len(tokens), n_chunk):
            ids_1S = np.array([tokens[start : start + n_chunk]], np.int64)
            logits_1SV, new = self._run(new, ids_1S)
            yield logits_1SV[0]
        kept = [(self._rows, index) for index in range(len(self.lengths))]
        kept[row : row + 1] = [(new, 0)]
        self._pack(kept)

    def step(self, tokens_B: Sequence[int]) -> Logits:
        """As in `Cache`."""
        self.lengths = [length + 1 for length in self.lengths]
        logits_BSV, self._rows = self._run(self._rows, np.array(tokens_B, np.int64)[:, None])
        return logits_BSV[:, 0]

    def remove(self, row: int) -> None:
        """As in `Cache`."""
        kept = [(self._rows, index) for index in range(len(self.lengths))]
        last = kept.pop()
        if row < len(kept):
            kept[row] = last
        self._pack(kept)

    def _empty_row(self) -> _Rows:
        return _Rows(
            values={
                tensor.past: _on_device(
                    np.zeros((1, tensor.heads, 0, tensor.width), tensor.dtype), self._model
                )
                for tensor in self._model.cache
            },
            mask_BW=np.zeros((1, 0), np.int64),
        )

    def _pack(self, rows: Sequence[tuple[_Rows, int]]) -> None:
        """Gather rows, each without its gaps, in a cache as wide as the longest."""
        self.lengths = [int(source.mask_BW[index].sum()) for source, index in rows]
        if not rows:
            self._rows = self._empty_row()
            return
        lengths_B = np.array(self.lengths)
        mask_BW = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        values = {
            tensor.past: _on_device(self._packed(tensor, rows, mask_BW), self._model)
            for tensor in self._model.cache
        }
        self._rows = _Rows(values=values, mask_BW=mask_BW)

    def _packed(
        self,
        tensor: CacheTensor,
        rows: Sequence[tuple[_Rows, int]],
        mask_BW: NDArray[np.int64],
    ) -> NDArray[np.generic]:
        n_rows, n_places = mask_BW.shape
        packed_BHWD: NDArray[np.generic] = np.zeros(
            (n_rows, tensor.heads, n_places, tensor.width), tensor.dtype
        )
        arrays = {id(source): source.values[tensor.past].numpy() for source, _ in rows}
        for row, (source, index) in enumerate(rows):
            held_W = source.mask_BW[index].astype(bool)
            packed_BHWD[row, :, : held_W.sum()] = arrays[id(source)][index][:, held_W]
        return packed_BHWD

    def _run(self, rows: _Rows, ids_BS: NDArray[np.int64]) -> tuple[Logits, _Rows]:
        mask_BW = np.concatenate([rows.mask_BW, np.ones_like(ids_BS)], axis=1)
        binding = _bind_tokens(self._model, ids_BS, mask_BW)
        for tensor in self._model.cache:
            binding.bind_ortvalue_input(tensor.past, rows.values[tensor.past])
            binding.bind_output(tensor.present, self._model.device)
        logits_BSV = _run(self._model, binding)
        values = dict(
            zip(rows.values, binding.get_outputs()[1:], strict=True)  # bound behind the logits
        )
        return logits_BSV, _Rows(values=values, mask_BW=mask_BW)


def _on_device(array: NDArray[np.generic], model: LoadedModel) -> "OrtValue":
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array, model.device)


def _bind_tokens(
    model: LoadedModel, ids_BS: NDArray[np.int64], mask_BW: NDArray[np.int64]
) -> "IOBinding":
    """A binding with everything but the cache; the logits come to the CPU, as the first output."""
    binding = model.session.io_binding()
    binding.bind_cpu_input("input_ids", ids_BS)
    binding.bind_cpu_input("attention_mask", mask_BW)
    if model.has_positions:
        # A token's position is the number of tokens before it, wherever the gaps are.
        positions_BS = (mask_BW.cumsum(axis=1) - 1)[:, -ids_BS.shape[1] :]
        binding.bind_cpu_input("position_ids", np.ascontiguousarray(positions_BS))
    binding.bind_output(_LOGITS, "cpu")
    return binding


def _run(model: LoadedModel, binding: "IOBinding") -> Logits:
    with failures_of(model.path):
        model.session.run_with_iobinding(binding)
    logits: NDArray[Any] = binding.get_outputs()[0].numpy()
    return logits.astype(np.float32, copy=False)
