"""What all runtimes of this machine share: they differ only in how logits and tokens are computed.

Shape legend: T tokens (positions), V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tightfit.runtimes.base import PARALLEL_SEQUENCES, Finished, check_tokens, ignore_finished
from tightfit.runtimes.results import Generation, SystemInfo
from tightfit.runtimes.sampling import Sampling


class LocalRuntime(ABC):
    """A `Runtime` without the computing; use it in a `with`."""

    path: Path
    context_tokens: int
    """Longest sequence, prompt and completion together."""
    vocab_size: int
    system_info: SystemInfo

    @property
    def name(self) -> str:
        """The file or folder that was loaded."""
        return self.path.absolute().name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; further calls fail."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""

    @abstractmethod
    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB; any other call may end the stream."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position, float32 (T, V); row t predicts token t + 1."""
        return np.concatenate(list(self.logits_chunks(tokens)))

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
        on_finished: Finished = ignore_finished,
    ) -> list[Generation]:
        """Complete prompts given as token ids, at most `parallel` at a time, in their order.

        Temperature 0 is greedy. `streams` numbers the random stream of each prompt (default: its
        index), so that the rest of an interrupted job draws what it would have drawn.
        `on_finished` gets each completion as it ends. The same arguments give the same tokens on
        the same machine.

        Raises `RuntimeFailureError` for a prompt that is empty, longer than the context or of
        another vocabulary, and when the runtime fails.
        """
        streams = range(len(prompts)) if streams is None else streams
        assert len(streams) == len(prompts), "a random stream for every prompt"
        for prompt in prompts:
            self._check_tokens(prompt)
        if not prompts:
            return []
        results: dict[int, Generation] = {}

        def keep(index: int, generation: Generation) -> None:
            results[index] = generation
            on_finished(index, generation)

        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            streams=tuple(streams),
        )
        self._complete(prompts, sampling, min(parallel, len(prompts)), keep)
        return [results[index] for index in range(len(prompts))]

    @abstractmethod
    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        parallel: int,
        on_finished: Finished,
    ) -> None:
        """Complete prompts that were checked; `on_finished` gets every one, as it ends."""

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        check_tokens(
            tokens,
            context_tokens=self.context_tokens,
            vocab_size=self.vocab_size,
            file_name=self.name,
        )
