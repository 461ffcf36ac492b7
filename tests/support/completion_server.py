"""A loopback server with OpenAI's legacy completions, as vLLM, SGLang, TGI and others answer.

Its model is a function from tokens to logits, its peculiarities are a `Behaviour`, and faults can
be queued: the next completions fail in that way. It records what it was asked.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tightfit.runtimes.tokenizer import FolderTokenizer

POLL_S = 0.02  # how long stopping the server may take
EXTENSIONS = {"skip_special_tokens", "return_token_ids", "top_k", "min_p", "repetition_penalty"}

Logits = Callable[[Sequence[int]], np.ndarray]
"""Tokens to logits (T, V)."""


def bigram(tokenizer: FolderTokenizer, vocab_size: int, seed: int = 0) -> Logits:
    """A model whose next token depends on the last one only; it ends after one in twenty.

    Parts of characters are possible and improbable, as in a trained model.
    """
    table_VV = np.random.default_rng(seed).normal(0, 2, (vocab_size, vocab_size))
    parts = [token for token in range(vocab_size) if "\ufffd" in tokenizer.decode([token])]
    table_VV[:, parts] -= 5.0
    (end,) = tokenizer.end_ids
    table_VV[:, end] = -20.0
    table_VV[::20, end] = 20.0
    return lambda tokens: table_VV[list(tokens)]


@dataclass
class Behaviour:
    """What servers do differently; the default is vLLM."""

    owner: str = "vllm"
    models: tuple[str, ...] = ("tiny",)
    max_model_len: int | None = 256
    key: str | None = None
    takes_ids: bool = True
    takes_extensions: bool = True
    returns_ids: bool = True
    scores: str = "prompt_logprobs"
    """prompt_logprobs, echo_ids, echo_strings, ignored or refused."""
    max_logprobs: int = 20
    adds_token: int | None = None
    """Put in front of a text (BOS)."""
    tokenizes: bool = True
    delay_s: float = 0.0


@dataclass
class Fault:
    """What happens to one completion."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    """End the connection without an answer."""
    truncate: bool = False
    """Send half of the body."""
    hang_s: float = 0.0


@dataclass
class CompletionServer:
    """The server's state."""

    logits: Logits
    tokenizer: FolderTokenizer
    behaviour: Behaviour
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of all completions asked for, failed ones included."""
    keys: set[str | None] = field(default_factory=set)
    most_at_once: int = 0
    gone: int = 0
    """Clients that went away before their answer."""
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of one completion."""
        how = self.behaviour
        if not how.takes_extensions and EXTENSIONS & body.keys():
            return 400, {"error": {"message": "unrecognized field"}}
        if not how.takes_ids and isinstance(body["prompt"], list):
            return 422, {
                "error": "invalid type: sequence, expected a string",
                "error_type": "input",
            }
        n_top = body.get("prompt_logprobs", body.get("logprobs", 0))
        if n_top > how.max_logprobs or (how.scores == "refused" and body.get("echo")):
            return 400, {"error": {"message": f"at most {how.max_logprobs} logprobs, no echo"}}
        prompt = self._tokens(body["prompt"])
        if how.max_model_len and len(prompt) + body["max_tokens"] > how.max_model_len:
            return 400, {"error": {"message": "longer than max_model_len"}}
        made, finish = self._generate(prompt, body)
        shown = [*prompt, *made] if body.get("echo") else made
        # vLLM's EOS is among the ids and not in the text; TGI leaves it in the text.
        text = self.tokenizer.decode(shown).removesuffix(self.end if how.owner != "tgi" else "")
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        if how.returns_ids and body.get("return_token_ids"):
            choice["token_ids"] = made
        if n_top:
            choice |= self._scores(prompt, made, n_top, body)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(made)}
        return 200, {"object": "text_completion", "choices": [choice], "usage": usage}

    @property
    def end(self) -> str:
        return self.tokenizer.decode(sorted(self.tokenizer.end_ids))

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        front = [] if self.behaviour.adds_token is None else [self.behaviour.adds_token]
        return front + self.tokenizer.encode(prompt)

    def _generate(self, prompt: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        random = np.random.default_rng(body.get("seed"))
        made: list[int] = []
        while len(made) < body["max_tokens"]:
            logits_V = self.logits([*prompt, *made])[-1]
            if body["temperature"]:
                p_V = np.exp(logits_V / body["temperature"])
                made.append(int(random.choice(len(p_V), p=p_V / p_V.sum())))
            else:
                made.append(int(logits_V.argmax()))
            if made[-1] in self.tokenizer.end_ids:
                return made, "eos_token" if self.behaviour.owner == "tgi" else "stop"
        return made, "length"

    def _scores(
        self, prompt: list[int], made: list[int], n_top: int, body: dict[str, Any]
    ) -> dict[str, Any]:
        how = self.behaviour.scores
        tokens = [*prompt, *made]
        logits_TV = self.logits(tokens)
        log_p_TV = logits_TV - np.log(np.exp(logits_TV).sum(1, keepdims=True))
        ranked_TV = np.argsort(-log_p_TV, axis=1)[:, :n_top]
        if how == "prompt_logprobs" and "prompt_logprobs" in body:
            positions: list[Any] = [None]
            for index, token in enumerate(prompt[1:]):
                # The token of the prompt comes first, whatever its rank.
                kept = dict.fromkeys([token, *ranked_TV[index].tolist()])
                positions.append({str(each): {"logprob": log_p_TV[index, each]} for each in kept})
            return {"prompt_logprobs": positions}
        if not how.startswith("echo") or not body.get("echo"):
            return {}
        name = self._name if how == "echo_strings" else "token_id:{}".format
        rows = list(enumerate(tokens[1:]))
        return {
            "logprobs": {
                "tokens": [name(token) for token in tokens],
                "token_logprobs": [None, *(log_p_TV[index, token] for index, token in rows)],
                "top_logprobs": [
                    None,
                    *({name(t): log_p_TV[i, t] for t in ranked_TV[i].tolist()} for i, _ in rows),
                ],
            }
        }

    def _name(self, token: int) -> str:
        return self.tokenizer.decode([token])


@contextmanager
def serve(
    logits: Logits, tokenizer: FolderTokenizer, behaviour: Behaviour | None = None
) -> Iterator[CompletionServer]:
    """Run the server on a free port of the loopback interface."""
    state = CompletionServer(logits, tokenizer, behaviour or Behaviour())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    server.block_on_close = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: CompletionServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self._refused():
                return
            if self.path == "/v1/models":
                cards = [
                    {"id": name, "owned_by": state.behaviour.owner}
                    | ({"max_model_len": n} if (n := state.behaviour.max_model_len) else {})
                    for name in state.behaviour.models
                ]
                self._json(200, {"object": "list", "data": cards})
            elif self.path == "/version":
                self._json(200, {"version": "0.99"})
            else:
                self._json(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._refused():
                return
            if self.path == "/tokenize" and state.behaviour.tokenizes:
                self._json(200, {"tokens": state.tokenizer.encode(body["prompt"])})
            elif self.path == "/v1/completions":
                with state.lock:
                    state.at_once += 1
                    state.most_at_once = max(state.most_at_once, state.at_once)
                    state.bodies.append(body)
                    fault = state.faults.pop(0) if state.faults else Fault()
                try:
                    answer = self._answer(body, fault)
                finally:
                    # Before it is sent: whoever has it may ask again at once.
                    with state.lock:
                        state.at_once -= 1
                if answer is None:
                    self.close_connection = True
                else:
                    self._send(*answer, fault)
            else:
                self._json(404, {"detail": "Not Found"})

        def _answer(self, body: dict[str, Any], fault: Fault) -> tuple[int, bytes] | None:
            """Status and body; None: the connection ends without."""
            if self._client_left(fault.hang_s or state.behaviour.delay_s):
                state.gone += 1
                return None
            if fault.close:
                return None
            if fault.body is not None or fault.status != 200:
                return fault.status, fault.body or b"{}"
            status, answer = state.complete(body)
            return status, json.dumps(answer).encode()

        def _client_left(self, seconds: float) -> bool:
            """Wait, and look whether the client closes its side meanwhile."""
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                try:
                    if self.connection.recv(1, socket.MSG_PEEK) == b"":
                        return True
                except TimeoutError:
                    break
            self.connection.settimeout(None)
            return False

        def _refused(self) -> bool:
            sent = self.headers.get("Authorization")
            key = sent.removeprefix("Bearer ") if sent else None
            state.keys.add(key)
            if state.behaviour.key is not None and key != state.behaviour.key:
                self._json(401, {"error": "Unauthorized"})
                return True
            return False

        def _json(self, status: int, value: object) -> None:
            self._send(status, json.dumps(value).encode(), Fault())

        def _send(self, status: int, data: bytes, fault: Fault) -> None:
            self.send_response(status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, value in (headers | fault.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault.truncate else data)
            if fault.truncate:
                self.close_connection = True

    return Handler
