"""A checkpoint folder running in transformers: logits of all positions, and completions.

Shape legend: T tokens (positions), V vocabulary.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.json_file import read_json
from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.base import Finished, usable_cores
from tightfit.runtimes.batching import generate
from tightfit.runtimes.local import LocalRuntime
from tightfit.runtimes.results import SystemInfo
from tightfit.runtimes.sampling import Sampling
from tightfit.runtimes.tokenizer import FolderTokenizer
from tightfit.runtimes.transformers.cache import PaddedCache, layer_tensors, run
from tightfit.runtimes.transformers.loading import find_device, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHORT_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class TransformersModel(LocalRuntime):
    """A Hugging Face folder of safetensors, in this process; use it in a `with`."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        context_tokens: int,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load `folder` (config.json, *.safetensors, tokenizer.json) onto `device`.

        `context_tokens` is per sequence; `dtype` None computes in float32 on the CPU, and in the
        checkpoint's own type elsewhere. Raises what `find_device`, `FolderTokenizer` and
        `load_model` raise.
        """
        self.path = Path(folder)
        self.context_tokens = context_tokens
        found = find_device(device)
        self._tokenizer = FolderTokenizer(self.path)
        model = load_model(self.path, device=found, dtype=dtype)
        self._model: PreTrainedModel | None = model
        self._probe(model)

    def close(self) -> None:
        """Give back the model's memory; further calls fail."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""
        return self._tokenizer.encode(text)

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB."""
        self._check_tokens(tokens)
        yield from self._new_cache().read(0, tokens)

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        parallel: int,
        on_finished: Finished,
    ) -> None:
        generate(
            self._new_cache(),
            prompts,
            sampling,
            self._tokenizer,
            context_tokens=self.context_tokens,
            parallel=parallel,
            on_finished=on_finished,
        )

    def _new_cache(self) -> PaddedCache:
        if self._model is None:
            raise RuntimeFailureError(f"the transformers model of {self.path} was closed")
        return PaddedCache(self._model, self.vocab_size)

    def _probe(self, model: "PreTrainedModel") -> None:
        """Run one token: what the model returns and keeps is what it really does here."""
        import transformers

        kv = transformers.DynamicCache()
        self.vocab_size = run(model, kv, [[0]], [1]).shape[-1]
        tensors = [tensor for pair in layer_tensors(kv) for tensor in pair]
        on_gpu = model.device.type == "cuda"
        stored = read_json(self.path / CONFIG_NAME).get("quantization_config", {})
        self.system_info = SystemInfo(
            label=f"transformers {transformers.__version__}, torch {torch.__version__}",
            device=torch.cuda.get_device_name(model.device) if on_gpu else str(model.device),
            threads=usable_cores() if on_gpu else torch.get_num_threads(),
            context_tokens=self.context_tokens,
            kv_type=_short_name(tensors[0].dtype),
            kv_bytes=self.context_tokens * sum(tensor.nbytes for tensor in tensors),
            facts={
                "dtype": _short_name(model.dtype),
                "quantization": stored.get("quant_method", "none"),
                "attention": str(model.config._attn_implementation),
            },
        )


def _short_name(dtype: torch.dtype) -> str:
    return _SHORT_NAMES.get(dtype, str(dtype).removeprefix("torch."))
