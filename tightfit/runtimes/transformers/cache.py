"""The KV cache of several sequences, as the batched steps of transformers need it.

All rows end at the same place: a shorter one is padded on the left, and the mask hides the padding.
So every row has its tokens without gaps, which also a sliding window asks for. When a row begins or
ends, all rows are packed anew, as wide as the longest; a step, which appends to every tensor by
copying it, costs as much.

Shape legend: B rows (sequences), S new tokens, W places of the cache, H heads, D width of a head,
T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from tightfit.runtimes.base import chunk_tokens
from tightfit.runtimes.batching import Logits
from tightfit.runtimes.transformers.loading import failures_of_running

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class PaddedCache:
    """A `Cache` of a loaded model."""

    def __init__(self, model: "PreTrainedModel", vocab_size: int) -> None:
        self._model = model
        self._chunk_tokens = chunk_tokens(vocab_size)
        self._kv = _empty()
        self.lengths: list[int] = []

    def read(self, row: int, tokens: Sequence[int]) -> Iterator[Logits]:
        """As in `Cache`."""
        new = _empty()
        for start in range(0, len(tokens), self._chunk_tokens):
            chunk = tokens[start : start + self._chunk_tokens]
            yield run(self._model, new, [chunk], [start + len(chunk)])[0]
        rows = [(self._kv, index, length) for index, length in enumerate(self.lengths)]
        rows[row : row + 1] = [(new, 0, len(tokens))]
        self._pack(rows)

    def step(self, tokens_B: Sequence[int]) -> Logits:
        """As in `Cache`."""
        self.lengths = [length + 1 for length in self.lengths]
        return run(self._model, self._kv, [[token] for token in tokens_B], self.lengths)[:, 0]

    def remove(self, row: int) -> None:
        """As in `Cache`."""
        rows = [(self._kv, index, length) for index, length in enumerate(self.lengths)]
        last = rows.pop()
        if row < len(rows):
            rows[row] = last
        self._pack(rows)

    @torch.inference_mode()
    def _pack(self, rows: Sequence[tuple["DynamicCache", int, int]]) -> None:
        """Gather rows, each a row of some cache and its length."""
        self.lengths = [length for _, _, length in rows]
        width = max(self.lengths, default=0)
        tensors = {id(source): layer_tensors(source) for source, _, _ in rows}
        packed = _empty()
        for layer in range(len(next(iter(tensors.values()), ()))):
            keys_BHWD, values_BHWD = (
                torch.stack(
                    [
                        _right_aligned(tensors[id(source)][layer][kind][row], length, width)
                        for source, row, length in rows
                    ]
                )
                for kind in (0, 1)
            )
            packed.update(keys_BHWD, values_BHWD, layer)
        self._kv = packed


@torch.inference_mode()
def run(
    model: "PreTrainedModel",
    kv: "DynamicCache",
    tokens_BS: Sequence[Sequence[int]],
    lengths_B: Sequence[int],
) -> Logits:
    """Append tokens to rows that have `lengths_B` tokens with them; logits (B, S, V)."""
    ids_BS = torch.tensor(tokens_BS)
    ends_B1 = torch.tensor(lengths_B)[:, None]
    width = max(lengths_B)
    mask_BW = (torch.arange(width) >= width - ends_B1).long()
    n_new = ids_BS.shape[1]
    positions_BS = ends_B1 - n_new + torch.arange(n_new)
    with failures_of_running(model.name_or_path):
        output = model(
            input_ids=ids_BS.to(model.device),
            attention_mask=mask_BW.to(model.device),
            position_ids=positions_BS.to(model.device),
            past_key_values=kv,
            use_cache=True,
        )
        logits: Logits = output.logits.float().cpu().numpy()
    return logits


def layer_tensors(kv: "DynamicCache") -> list[tuple[Tensor, Tensor]]:
    """Keys and values (B, H, W, D) of every layer."""
    from transformers.cache_utils import DynamicLayer

    pairs = []
    for layer in kv.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        pairs.append((layer.keys, layer.values))
    return pairs


def _empty() -> "DynamicCache":
    """Without the config every layer keeps all positions, also where a window would drop them."""
    from transformers import DynamicCache

    return DynamicCache()


def _right_aligned(x_HWD: Tensor, length: int, width: int) -> Tensor:
    """The last `length` places of a row, behind padding."""
    return pad(x_HWD[:, x_HWD.shape[1] - length :], (0, 0, width - length, 0))
