"""An ONNX model running in onnxruntime: logits of all positions, and completions.

Shape legend: T tokens (positions), V vocabulary.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.base import PARALLEL_SEQUENCES, Progress, check_tokens, no_progress
from tightfit.runtimes.onnx.cache import new_cache
from tightfit.runtimes.onnx.generation import Limits, generate
from tightfit.runtimes.onnx.session import LoadedModel, SessionOptions, load_model
from tightfit.runtimes.results import Generation, StopReason, SystemInfo
from tightfit.runtimes.sampling import Sampling
from tightfit.runtimes.tokenizer import FolderTokenizer, find_tokenizer_folder

BITS_PER_BYTE = 8


class OnnxModel:
    """An ONNX file with a KV cache, in this process; use it in a `with`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        tokenizer_folder: Path | None = None,
        *,
        context_tokens: int,
        options: SessionOptions = SessionOptions(),  # noqa: B008 - frozen
    ) -> None:
        """Load `path`; the tokenizer lies in `tokenizer_folder`, or beside or above the file.

        `context_tokens` is per sequence. Raises what `load_model` and `FolderTokenizer` raise.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise RuntimeFailureError(
                f"{path} is not a file", hint="give the ONNX file that `tightfit export` wrote"
            )
        self.context_tokens = context_tokens
        self._tokenizer = FolderTokenizer(tokenizer_folder or find_tokenizer_folder(self.path))
        model = load_model(self.path, options)
        self._model: LoadedModel | None = model
        self.vocab_size = model.vocab_size
        self.system_info = _system_info(model, context_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the session's memory; further calls fail."""
        self._model = None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""
        return self._tokenizer.encode(text)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position, float32 (T, V); row t predicts token t + 1."""
        return np.concatenate(list(self.logits_chunks(tokens)))

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB."""
        self._check_tokens(tokens)
        cache = new_cache(self._loaded, rows=1, context_tokens=len(tokens))
        yield from cache.read(0, tokens)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int,
        parallel: int = PARALLEL_SEQUENCES,
        on_progress: Progress = no_progress,
    ) -> list[Generation]:
        """Complete prompts given as token ids, `parallel` at a time, in their order.

        Temperature 0 is greedy. The same arguments give the same tokens on the same machine.
        """
        for prompt in prompts:
            self._check_tokens(prompt)
        if not prompts:
            return []
        results: dict[int, Generation] = {}

        def on_finished(index: int, output: Sequence[int], stop: StopReason) -> None:
            text = self._tokenizer.decode(output)
            results[index] = Generation(token_ids=tuple(output), text=text, stop=stop)
            on_progress(len(results), len(prompts))

        parallel = min(parallel, len(prompts))
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
        limits = Limits(end_ids=self._tokenizer.end_ids, context_tokens=self.context_tokens)
        cache = new_cache(self._loaded, rows=parallel, context_tokens=self.context_tokens)
        generate(cache, prompts, sampling, limits, parallel=parallel, on_finished=on_finished)
        return [results[index] for index in range(len(prompts))]

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        check_tokens(
            tokens,
            context_tokens=self.context_tokens,
            vocab_size=self.vocab_size,
            file_name=self.path.name,
        )

    @property
    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeFailureError(f"the onnxruntime session of {self.path} was closed")
        return self._model


def _system_info(model: LoadedModel, context_tokens: int) -> SystemInfo:
    levels = ", ".join(f"accuracy level {level}" for level in model.accuracy_levels)
    token_bytes = sum(tensor.token_bytes for tensor in model.cache)
    return SystemInfo(
        label=f"onnxruntime {model.version} ({model.device}{levels and ', '}{levels})",
        device=model.device,
        threads=model.threads,
        context_tokens=context_tokens,
        kv_type=f"f{BITS_PER_BYTE * np.dtype(model.cache[0].dtype).itemsize}",
        kv_bytes=token_bytes * context_tokens,
        facts={
            "provider": model.provider,
            "integer_matmul": levels,
            "cache": "in place" if model.facts.in_place_cache else "concatenated",
        },
    )
