"""What drift and verification need of a runtime, whichever it is.

Shape legend: T tokens (positions), V vocabulary.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.logprobs import TokenLogprobs
from tightfit.runtimes.results import Generation, SystemInfo

MAX_BATCH_TOKENS = 512
"""Positions computed at a time; llama.cpp's own default of a physical batch."""
MAX_LOGITS_BYTES = 64 * 2**20
"""Logits of one chunk; 110 positions of a vocabulary of 152,064."""
PARALLEL_SEQUENCES = 16
"""Default number of completions at a time: each step reads all weights once, for all of them."""

Finished = Callable[[int, Generation], None]
"""Called with a prompt's index and its completion, in order of completion."""


class Generator(Protocol):
    """A model that completes prompts; use it in a `with`."""

    system_info: SystemInfo

    @property
    def name(self) -> str:
        """The file that was loaded, or what the model is called where it is served."""

    @property
    def vocab_size(self) -> int | None:
        """Tokens of the vocabulary; None where a server does not tell."""

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of `text`, special tokens written in it read as such, none added.

        None where a server does not tell.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int,
        streams: Sequence[int] | None = None,
        parallel: int = PARALLEL_SEQUENCES,
        on_finished: Finished = ...,
    ) -> list[Generation]:
        """Complete prompts given as token ids, `parallel` at a time, in their order.

        Temperature 0 is greedy. `streams` numbers the random stream of each prompt (default: its
        index). `on_finished` gets each completion as it ends. The same arguments give the same
        tokens on the same machine.
        """

    def close(self) -> None:
        """Give back what it holds; further calls fail."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""


class Runtime(Generator, Protocol):
    """A model running in its runtime, with the logits of every token."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary: the width of the logits."""

    @property
    def path(self) -> Path:
        """The file or folder that was loaded."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position, float32 (T, V); row t predicts token t + 1."""

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most `MAX_LOGITS_BYTES`."""


@runtime_checkable
class LogprobRuntime(Generator, Protocol):
    """A model that gives only the most probable tokens of each position, as servers do."""

    def token_logprobs(self, tokens: Sequence[int], first_scored: int) -> TokenLogprobs:
        """Distributions of the positions that predict `tokens[first_scored:]`, one a token.

        Raises `LogprobsUnavailableError` when the server does not give them.
        """


def ignore_finished(_index: int, _generation: Generation) -> None:
    """Take no notice."""


def chunk_tokens(vocab_size: int) -> int:
    """Positions whose float32 logits fit a chunk."""
    row_bytes = vocab_size * np.dtype(np.float32).itemsize
    return max(1, min(MAX_BATCH_TOKENS, MAX_LOGITS_BYTES // row_bytes))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_tokens(
    tokens: Sequence[int], *, context_tokens: int, vocab_size: int, file_name: str
) -> None:
    """Raise `RuntimeFailureError` for a sequence that the model cannot read."""
    if not 0 < len(tokens) <= context_tokens:
        raise RuntimeFailureError(
            f"a sequence of {len(tokens)} tokens",
            allowed=f"1 to {context_tokens}, the context that was asked for",
            hint="ask for a longer context, or leave out long problems",
        )
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= vocab_size:
        raise RuntimeFailureError(
            f"token ids from {low} to {high}",
            allowed=f"0 to {vocab_size - 1}, the vocabulary of {file_name}",
            hint="the tokenizer belongs to another model: give the one that was exported",
        )
