"""The child process: reads requests from stdin, answers on what was its stdout.

Requests are JSON objects with an `op`:

    load      path, context_tokens, threads, gpu_layers, kv_type  -> vocab_size and library facts
    tokenize  text, add_special, parse_special                    -> tokens
    logits    tokens           -> one reply a chunk (rows, then float32 bytes), then `done`
    generate  prompts, parallel and the fields of `Sampling`      -> one reply a prompt, then `done`

A failure that llama.cpp reports is answered by `error`; one that it does not survive ends the
process, and the parent sees the end of the stream. The C library writes to stdout and stderr as it
likes: both are the log file that the parent opened as stderr.
"""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO

from tightfit.errors import TightfitError
from tightfit.runtimes.framing import Message, receive, send
from tightfit.runtimes.llamacpp import binding
from tightfit.runtimes.llamacpp.engine import Engine, EngineOptions
from tightfit.runtimes.llamacpp.generation import generate
from tightfit.runtimes.results import Generation
from tightfit.runtimes.sampling import Sampling
from tightfit.runtimes.worker_streams import open_replies


class Worker:
    """Answers requests one after another."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._engine: Engine | None = None
        self._operations: dict[str, Callable[[Message], None]] = {
            "load": self._load,
            "tokenize": self._tokenize,
            "logits": self._logits,
            "generate": self._generate,
        }

    def answer(self, request: Message) -> None:
        """Carry out one request; every request gets `done` or `error` as its last reply."""
        try:
            self._operations[request.pop("op")](request)
        except TightfitError as error:
            parts = {"problem": error.problem, "allowed": error.allowed, "hint": error.hint}
            send(self._replies, {"error": parts, "kind": type(error).__name__})

    def _load(self, request: Message) -> None:
        library = binding.load_library()
        self._engine = Engine(library, EngineOptions(**request))
        send(
            self._replies,
            {
                "done": True,
                "vocab_size": self._engine.n_vocab,
                "library_version": library.llama_version().decode(),
                "cpu_features": library.llama_print_system_info().decode(),
            },
        )

    def _tokenize(self, request: Message) -> None:
        send(self._replies, {"done": True, "tokens": self._loaded.tokenize(**request)})

    def _logits(self, request: Message) -> None:
        for logits_TV in self._loaded.logits(request["tokens"]):
            send(self._replies, {"rows": len(logits_TV)}, logits_TV.data.cast("B"))
        send(self._replies, {"done": True})

    def _generate(self, request: Message) -> None:
        prompts, parallel = request.pop("prompts"), request.pop("parallel")

        def on_finished(index: int, result: Generation) -> None:
            reply = {"index": index, "token_ids": result.token_ids, "text": result.text}
            send(self._replies, {**reply, "stop": result.stop.value})

        generate(
            self._loaded, prompts, Sampling(**request), parallel=parallel, on_finished=on_finished
        )
        send(self._replies, {"done": True})

    @property
    def _loaded(self) -> Engine:
        assert self._engine is not None, "the first request is `load`"
        return self._engine


def main() -> None:
    """Serve until stdin ends or the parent is gone."""
    replies = open_replies()
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    worker = Worker(replies)
    try:
        while True:
            worker.answer(requests.get())
    except Exception:
        # Leaving normally would abort in llama.cpp's destructors and look like a damaged file.
        traceback.print_exc()
        os._exit(1)


def _read_requests(requests: "queue.SimpleQueue[Message]") -> None:
    """Queue requests; leave at once when the parent closes stdin, even within a computation."""
    while (received := receive(sys.stdin.buffer)) is not None:
        requests.put(received[0])
    os._exit(0)


if __name__ == "__main__":
    main()
