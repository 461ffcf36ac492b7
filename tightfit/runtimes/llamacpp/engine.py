"""A model and its contexts inside the child process: tokens in, logits out.

Shape legend: T tokens (positions), V vocabulary.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.base import chunk_tokens
from tightfit.runtimes.llamacpp.binding import FLASH_ATTENTION_OFF, GGML_TYPES, Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How to load and run a model."""

    path: str
    context_tokens: int
    """Per sequence."""
    threads: int
    gpu_layers: int
    kv_type: str


class Context:
    """A KV cache for some sequences, and the batch that is sent to it."""

    def __init__(
        self, library: ctypes.CDLL, model: int, options: EngineOptions, n_seq: int, n_batch: int
    ) -> None:
        params = library.llama_context_default_params()
        params.n_ctx = options.context_tokens * n_seq
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = n_seq
        params.n_threads = params.n_threads_batch = options.threads
        params.type_k = params.type_v = GGML_TYPES[options.kv_type]
        if options.kv_type == "f32":
            # Flash attention casts a float32 cache to float16 (measured: logits bit-equal to f16).
            params.flash_attn_type = FLASH_ATTENTION_OFF
        handle = library.llama_init_from_model(model, params)
        if not handle:
            raise RuntimeFailureError(
                f"llama.cpp could not create a context of {n_seq} x {options.context_tokens} "
                f"tokens",
                hint="ask for a shorter context or fewer sequences, or free memory",
            )
        self.library = library
        self.n_batch = n_batch
        self.sequence_tokens = int(library.llama_n_ctx_seq(handle))
        self._handle = handle
        self._memory = library.llama_get_memory(handle)
        self._batch: Batch = library.llama_batch_init(n_batch, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        self.library.llama_memory_clear(self._memory, True)

    def forget(self, seq: int) -> None:
        """Forget one sequence."""
        self.library.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def add(self, token: int, position: int, seq: int, *, want_logits: bool) -> int:
        """Append a token to the batch; its index there."""
        index: int = self._batch.n_tokens
        assert index < self.n_batch
        self._batch.token[index] = token
        self._batch.pos[index] = position
        self._batch.n_seq_id[index] = 1
        self._batch.seq_id[index][0] = seq
        self._batch.logits[index] = want_logits
        self._batch.n_tokens = index + 1
        return index

    def decode(self) -> None:
        """Run the batch and empty it."""
        status = self.library.llama_decode(self._handle, self._batch)
        n_tokens, self._batch.n_tokens = self._batch.n_tokens, 0
        if status != 0:
            raise RuntimeFailureError(
                f"llama_decode returned {status} on a batch of {n_tokens} tokens",
                hint="1 means that the KV cache is full; below zero, see the log below",
            )

    def all_logits(self, n_rows: int, n_vocab: int) -> NDArray[np.float32]:
        """A copy of the logits (T, V) of the batch just run, all of whose tokens wanted them."""
        rows = self.library.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(rows, shape=(n_rows, n_vocab)).copy()

    def logits_of(self, index: int, n_vocab: int) -> NDArray[np.float32]:
        """The logits (V,) of one token of the batch just run; valid until the next `decode`."""
        row = self.library.llama_get_logits_ith(self._handle, index)
        return np.ctypeslib.as_array(row, shape=(n_vocab,))

    def close(self) -> None:
        """Free the KV cache."""
        self.library.llama_batch_free(self._batch)
        self.library.llama_free(self._handle)


class Engine:
    """One loaded model with one context at a time."""

    def __init__(self, library: ctypes.CDLL, options: EngineOptions) -> None:
        if options.gpu_layers > 0 and not library.llama_supports_gpu_offload():
            raise RuntimeFailureError(
                f"{options.gpu_layers} layers were asked for on the GPU, and the installed "
                f"xllamacpp has no GPU backend",
                hint="install a CUDA or Vulkan wheel of xllamacpp of the same version, or use the "
                "CPU (0 layers)",
            )
        params = library.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers
        model = library.llama_model_load_from_file(options.path.encode(), params)
        if not model:
            raise RuntimeFailureError(
                f"llama.cpp refused to load {options.path}",
                hint="the log below says why; write the file again, and look at it with "
                "`tightfit inspect`",
            )
        self.library = library
        self.options = options
        self._model = model
        self._vocab = library.llama_model_get_vocab(model)
        self.n_vocab = int(library.llama_vocab_n_tokens(self._vocab))
        self._n_batch = chunk_tokens(self.n_vocab)
        self._n_seq = 1
        self._context = Context(library, model, options, 1, self._n_batch)

    def context(self, n_seq: int) -> Context:
        """An empty context for that many sequences, replacing the one before."""
        if n_seq != self._n_seq:
            self._context.close()
            # Never smaller than the sequences: each adds a token in every step.
            n_batch = max(self._n_batch, n_seq)
            self._context = Context(self.library, self._model, self.options, n_seq, n_batch)
            self._n_seq = n_seq
        self._context.clear()
        return self._context

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Logits of all positions, float32 (T, V) in chunks of positions."""
        context = self.context(1)
        for start in range(0, len(tokens), context.n_batch):
            chunk = tokens[start : start + context.n_batch]
            for offset, token in enumerate(chunk):
                context.add(token, start + offset, 0, want_logits=True)
            context.decode()
            yield context.all_logits(len(chunk), self.n_vocab)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        n_room = len(data) + 2  # every byte a token, BOS and EOS
        while True:
            room = (ctypes.c_int32 * n_room)()
            n_tokens = self.library.llama_tokenize(
                self._vocab, data, len(data), room, n_room, add_special, parse_special
            )
            if n_tokens >= 0:
                return list(room[:n_tokens])
            n_room = -n_tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special tokens written out."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        n_room = 8 * len(tokens) + 1
        while True:
            room = ctypes.create_string_buffer(n_room)
            n_bytes = self.library.llama_detokenize(
                self._vocab, ids, len(tokens), room, n_room, False, True
            )
            if n_bytes >= 0:
                return room.raw[:n_bytes].decode(errors="replace")
            n_room = -n_bytes

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self.library.llama_vocab_is_eog(self._vocab, token))
