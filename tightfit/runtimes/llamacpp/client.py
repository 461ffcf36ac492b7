"""The parent's side: one child process that runs llama.cpp, and what happens when it dies.

llama.cpp aborts the process on malformed files, so that it only ever runs in a child. The last
lines of the child's log are part of every error.

Shape legend: T tokens (positions), V vocabulary.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.base import Finished, usable_cores
from tightfit.runtimes.child import ChildProcess, Reply
from tightfit.runtimes.framing import Message
from tightfit.runtimes.llamacpp import binding
from tightfit.runtimes.local import LocalRuntime
from tightfit.runtimes.results import Generation, StopReason, SystemInfo
from tightfit.runtimes.sampling import Sampling

REPLY_TIMEOUT_S = 1800.0
"""Longest silence of the child: loading a model, one chunk of logits, or one completion."""
LOG_LINES = 6
"""Lines of the child's log in an error message."""
MIB = 2**20
CHILD_ENVIRONMENT = {
    # Threads that wait must sleep: spinning made generation eight times slower on two shared cores.
    "OMP_WAIT_POLICY": "passive",
    # An abort must not start a debugger to print a backtrace.
    "GGML_NO_BACKTRACE": "1",
}
DAMAGED_HINT = (
    "the file may be damaged: write it again, and look at it with `tightfit inspect`; or memory "
    "ran out: ask for a shorter context"
)
_BUFFER_SIZE = re.compile(r"(model|KV|compute) buffer size = +([\d.]+) MiB")


class LlamaCpp(LocalRuntime):
    """A GGUF file running in llama.cpp, in a child process of its own; use it in a `with`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context_tokens: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        kv_type: Literal["f16", "f32"] = "f16",
        reply_timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        """Load `path` (the first file of a split one).

        `context_tokens` is per sequence; `threads` None means all cores that this process may use;
        `gpu_layers` is how many layers llama.cpp puts on a GPU; `kv_type` f16 is how llama.cpp
        ships, f32 is for comparing with a float32 reference.

        Raises `MissingPackageError`, and `RuntimeFailureError` when the file does not load.
        """
        binding.check_package()
        if not Path(path).is_file():
            raise RuntimeFailureError(
                f"{path} is not a file", hint="give the GGUF file that `tightfit export` wrote"
            )
        self.path = Path(path)
        self.context_tokens = context_tokens
        self._timeout_s = reply_timeout_s
        self._answering = False
        self._n_requests = 0
        self._child = ChildProcess("tightfit.runtimes.llamacpp.worker", CHILD_ENVIRONMENT)
        options: Message = {
            "context_tokens": context_tokens,
            "threads": threads or usable_cores(),
            "gpu_layers": gpu_layers,
            "kv_type": kv_type,
        }
        try:
            loaded = self._ask({"op": "load", "path": str(self.path), **options})
        except BaseException:
            self.close()
            raise
        self.vocab_size = loaded["vocab_size"]
        self.system_info = self._system_info(loaded, options)

    def close(self) -> None:
        """End the child; further calls fail."""
        self._child.stop()

    def tokenize(
        self, text: str, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS as the file says; `parse_special` reads special tokens written in
        the text.
        """
        reply = self._ask(
            {
                "op": "tokenize",
                "text": text,
                "add_special": add_special,
                "parse_special": parse_special,
            }
        )
        tokens: list[int] = reply["tokens"]
        return tokens

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB; any other call ends the stream."""
        self._check_tokens(tokens)
        self._send({"op": "logits", "tokens": [int(token) for token in tokens]})
        request = self._n_requests
        while True:
            assert request == self._n_requests, "another call has ended this stream"
            message, data = self._receive()
            if "done" in message:
                return
            yield np.frombuffer(data, np.float32).reshape(message["rows"], self.vocab_size)

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        parallel: int,
        on_finished: Finished,
    ) -> None:
        self._send(
            {
                "op": "generate",
                "prompts": [[int(token) for token in prompt] for prompt in prompts],
                "parallel": parallel,
                **asdict(sampling),
            }
        )
        while "done" not in (message := self._receive()[0]):
            generation = Generation(
                token_ids=tuple(message["token_ids"]),
                text=message["text"],
                stop=StopReason(message["stop"]),
            )
            on_finished(message["index"], generation)

    def _ask(self, request: Message) -> Message:
        self._send(request)
        return self._receive()[0]

    def _send(self, request: Message) -> None:
        if not self._child.running:
            raise RuntimeFailureError(f"the llama.cpp process of {self.path} was closed")
        while self._answering:  # a stream that was given up half-way
            self._receive()
        self._answering = True
        self._n_requests += 1
        self._child.send(request)

    def _receive(self) -> Reply:
        """The next reply; after a timeout, a death or Ctrl-C there is no child any more."""
        try:
            reply = self._child.receive(self._timeout_s)
            if reply is None:
                how = self._child.exit_description()
                raise self._failure(f"llama.cpp ended with {how} while it ran {self.path}")
        except TimeoutError:
            error = self._failure(f"llama.cpp was silent for {self._timeout_s:g} s")
            self.close()
            raise error from None
        except BaseException:
            self.close()
            raise
        self._answering = not reply[0].keys() & {"done", "error"}
        if "error" in reply[0]:
            parts = reply[0]["error"]
            raise self._failure(parts["problem"], allowed=parts["allowed"], hint=parts["hint"])
        return reply

    def _failure(
        self, problem: str, *, allowed: str = "", hint: str = DAMAGED_HINT
    ) -> RuntimeFailureError:
        lines = self._child.log_text().splitlines()[-LOG_LINES:]
        if lines:
            hint = "\n".join([hint, "the last lines of its log:", *(f"  {line}" for line in lines)])
        return RuntimeFailureError(problem, allowed=allowed, hint=hint)

    def _system_info(self, loaded: Message, options: Message) -> SystemInfo:
        sizes_bytes = dict.fromkeys(("model", "KV", "compute"), 0)
        for kind, mib in _BUFFER_SIZE.findall(self._child.log_text()):
            sizes_bytes[kind] += int(float(mib) * MIB)
        return SystemInfo(
            label=f"llama.cpp ({binding.PACKAGE} {binding.PACKAGE_VERSION})",
            device=f"{options['gpu_layers']} layers on a GPU" if options["gpu_layers"] else "cpu",
            threads=options["threads"],
            context_tokens=options["context_tokens"],
            kv_type=options["kv_type"],
            kv_bytes=sizes_bytes["KV"],
            facts={
                "library_version": loaded["library_version"],
                "cpu_features": loaded["cpu_features"],
                "model_bytes": sizes_bytes["model"],
                "compute_bytes": sizes_bytes["compute"],
            },
        )
