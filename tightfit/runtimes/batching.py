"""Several completions at once: continuous batching over the rows of a cache.

A row whose completion has ended is given to the next prompt; when no prompt waits, the batch
shrinks. The same call gives the same batches and the same tokens.

Shape legend: B rows (sequences), T tokens, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tightfit.runtimes.base import Finished
from tightfit.runtimes.results import Generation, StopReason
from tightfit.runtimes.sampling import Sampling, choose_token
from tightfit.runtimes.tokenizer import FolderTokenizer

Logits = NDArray[np.float32]


class Cache(Protocol):
    """Rows of sequences under way; row numbers are 0 to `n_rows` - 1 without gaps."""

    lengths: list[int]
    """Tokens of each row."""

    def read(self, row: int, tokens: Sequence[int]) -> Iterator[Logits]:
        """Begin a row anew with these tokens; logits (T, V) in chunks.

        `row` may be the next one. It counts from when all chunks are taken.
        """

    def step(self, tokens_B: Sequence[int]) -> Logits:
        """Append one token to every row; logits (B, V)."""

    def remove(self, row: int) -> None:
        """End a row; the last row takes its number."""


@dataclass(kw_only=True, slots=True)
class _Row:
    """A completion under way; its number among the rows is its row in the cache."""

    prompt_index: int
    random: np.random.Generator
    output: list[int] = field(default_factory=list)


def generate(
    cache: Cache,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    tokenizer: FolderTokenizer,
    *,
    context_tokens: int,
    parallel: int,
    on_finished: Finished,
) -> None:
    """Complete every prompt, `parallel` at a time."""
    batch = _Batch(cache, prompts, sampling, tokenizer, context_tokens, on_finished)
    for row in range(parallel):
        if not batch.begin(row):
            break
    while batch.rows:
        batch.step()


class _Batch:
    """The rows under way, and the prompts that wait for one."""

    def __init__(
        self,
        cache: Cache,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        tokenizer: FolderTokenizer,
        context_tokens: int,
        on_finished: Finished,
    ) -> None:
        self.rows: list[_Row] = []
        self._cache = cache
        self._waiting = enumerate(prompts)
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._on_finished = on_finished

    def begin(self, row: int) -> bool:
        """Give a row, or the next new one, to a prompt; False, and no such row, if none waits."""
        for index, prompt in self._waiting:
            state = _Row(prompt_index=index, random=self._sampling.random(index))
            self.rows[row : row + 1] = [state]
            (last_TV,) = deque(self._cache.read(row, prompt), maxlen=1)
            if self._advance(row, last_TV[-1]):
                return True
        if row < len(self.rows):
            self._cache.remove(row)
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
        return False

    def step(self) -> None:
        """Add a token to every row."""
        logits_BV = self._cache.step([state.output[-1] for state in self.rows])
        ended = [row for row, logits_V in enumerate(logits_BV) if not self._advance(row, logits_V)]
        # From the last to the first, since a row that goes is replaced by the last one.
        for row in reversed(ended):
            self.begin(row)

    def _advance(self, row: int, logits_V: NDArray[np.float32]) -> bool:
        """Choose the next token of a row; whether the row goes on."""
        state = self.rows[row]
        token = choose_token(logits_V, self._sampling, state.random)
        stop = self._take(state, token, self._cache.lengths[row])
        if stop is not None:
            text = self._tokenizer.decode(state.output)
            done = Generation(token_ids=tuple(state.output), text=text, stop=stop)
            self._on_finished(state.prompt_index, done)
        return stop is None

    def _take(self, state: _Row, token: int, length: int) -> StopReason | None:
        if token in self._tokenizer.end_ids:
            return StopReason.END
        state.output.append(token)
        if len(state.output) >= self._sampling.max_tokens:
            return StopReason.LENGTH
        return StopReason.CONTEXT if length >= self._context_tokens else None
