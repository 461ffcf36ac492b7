"""An ONNX model running in onnxruntime: logits of all positions, and completions.

Shape legend: T tokens (positions), V vocabulary.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.base import Finished
from tightfit.runtimes.batching import generate
from tightfit.runtimes.local import LocalRuntime
from tightfit.runtimes.onnx.cache import new_cache
from tightfit.runtimes.onnx.session import LoadedModel, SessionOptions, load_model
from tightfit.runtimes.results import SystemInfo
from tightfit.runtimes.sampling import Sampling
from tightfit.runtimes.tokenizer import FolderTokenizer, find_tokenizer_folder

BITS_PER_BYTE = 8


class OnnxModel(LocalRuntime):
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

    def close(self) -> None:
        """Give back the session's memory; further calls fail."""
        self._model = None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""
        return self._tokenizer.encode(text)

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB."""
        self._check_tokens(tokens)
        cache = new_cache(self._loaded, rows=1, context_tokens=len(tokens))
        yield from cache.read(0, tokens)

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        parallel: int,
        on_finished: Finished,
    ) -> None:
        generate(
            new_cache(self._loaded, rows=parallel, context_tokens=self.context_tokens),
            prompts,
            sampling,
            self._tokenizer,
            context_tokens=self.context_tokens,
            parallel=parallel,
            on_finished=on_finished,
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
