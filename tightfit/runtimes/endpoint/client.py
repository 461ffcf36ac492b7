"""A model behind an OpenAI-compatible server: completions, and log-probabilities where it has them.

Interface: OpenAI's POST /v1/completions (the legacy one: a chat's cannot force `<think>`) and
GET /v1/models, with extensions of vLLM, SGLang and llama.cpp named in `requests`.

Shape legend: T tokens (positions).
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any, Final, Self

from tightfit.errors import LogprobsUnavailableError, RuntimeFailureError
from tightfit.runtimes.base import PARALLEL_SEQUENCES, Finished, ignore_finished
from tightfit.runtimes.endpoint.address import api_key, base_url, host_of, root_url
from tightfit.runtimes.endpoint.completion import (
    TokenizerLike,
    from_text,
    from_tokens,
    request_seed,
    stop_reason,
)
from tightfit.runtimes.endpoint.flight import Flight
from tightfit.runtimes.endpoint.http import MALFORMED, JsonClient, RefusedError, Retries
from tightfit.runtimes.endpoint.opening import Opened, open_server, server_name
from tightfit.runtimes.endpoint.requests import first_choice, generated_ids
from tightfit.runtimes.endpoint.scoring import Way, score
from tightfit.runtimes.logprobs import TokenLogprobs
from tightfit.runtimes.results import Generation, StopReason, SystemInfo

TIMEOUT_S: Final = 3600.0
"""Longest wait for one completion: 32,768 tokens at ten a second, which a busy server gives."""

_log = logging.getLogger(__name__)


class Endpoint:
    """A model that a server completes prompts with; use it in a `with`."""

    def __init__(
        self,
        url: str,
        *,
        tokenizer: TokenizerLike,
        context_tokens: int,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        """Make contact with the server at `url`, which ends in /v1 or lacks it.

        `tokenizer` is that of the model that is served; `context_tokens` counts prompt and
        completion, and the server's own limit holds where that is less. `model` None is the only
        one that is served. The key, if any, is in TIGHTFIT_API_KEY or OPENAI_API_KEY. `timeout_s`
        is for one completion. `warn` is told once what the server does not take.

        Raises `UsageError` for what is no URL and for a model that is not served or not named
        among several, `RuntimeFailureError` where the server does not answer as it should.
        """
        self._client = JsonClient(base_url(url), key=api_key(), timeout_s=timeout_s)
        self._tokenizer = tokenizer
        self._retries = retries
        self._way: Way | None = None
        opened = open_server(self._client, model, tokenizer)
        self._dialect = opened.dialect
        self.vocab_size = opened.card.vocab_size
        self.context_tokens = min(context_tokens, opened.card.context_tokens or context_tokens)
        self.system_info = _system_info(self._client.base, opened, self.context_tokens)
        self._closed = False
        for remark in opened.remarks:
            warn(f"{host_of(self._client.base)}: {remark}")
        if self.context_tokens < context_tokens:
            warn(
                f"{host_of(self._client.base)}: the server's context is {self.context_tokens} "
                f"tokens, {context_tokens} were asked for: longer answers are cut"
            )

    @property
    def name(self) -> str:
        """What the server calls the model."""
        return self._dialect.model

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
        """Nothing is held between requests; further calls fail."""
        self._closed = True

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
        """Complete prompts given as token ids, `parallel` requests at a time, in their order.

        Temperature 0 is greedy. `streams` numbers the random stream of each prompt (default: its
        index). `on_finished` gets each completion as it ends, in the calling thread. The same
        arguments give the same tokens as far as the server keeps its promise of a seed: batches
        that differ may round differently.

        Raises `RuntimeFailureError` for a prompt that is empty or longer than the context, and
        when a request fails for good; it says how many completions were handed on before. Those
        under way are broken off, then and when the caller is interrupted.
        """
        self._check_open()
        numbers = range(len(prompts)) if streams is None else streams
        assert len(numbers) == len(prompts), "a random stream for every prompt"
        for prompt in prompts:
            self._check_length(len(prompt), self.context_tokens)
        flight = Flight()
        results: dict[int, Generation] = {}

        def complete(index: int) -> Generation:
            return self._complete(
                prompts[index],
                flight,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=request_seed(seed, numbers[index]),
            )

        pool = ThreadPoolExecutor(max(1, min(parallel, len(prompts))))
        try:
            futures = {pool.submit(complete, index): index for index in range(len(prompts))}
            for future in as_completed(futures):
                generation = _result(future, finished=len(results), total=len(prompts))
                results[futures[future]] = generation
                on_finished(futures[future], generation)
        except BaseException:
            flight.cancel()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [results[index] for index in range(len(prompts))]

    def token_logprobs(self, tokens: Sequence[int], first_scored: int) -> TokenLogprobs:
        """Distributions of the positions that predict `tokens[first_scored:]`, one a token.

        Each has the most probable tokens, as many as the server gives, and the one that follows.

        Raises `LogprobsUnavailableError` when the server does not give them, and
        `RuntimeFailureError` for a sequence that does not leave room for the one token that a
        server must generate.
        """
        self._check_open()
        self._check_length(len(tokens), self.context_tokens - 1)
        assert 0 < first_scored < len(tokens), "the first token has no prediction"
        if self._dialect.as_text:
            raise LogprobsUnavailableError(
                "the server takes prompts as text only, so that its tokens may be others",
                hint="measure the accuracy alone, or serve the model with vLLM",
            )
        scored = score(
            self._client,
            self._dialect,
            tokens,
            first_scored,
            self._tokenizer,
            ways=tuple(Way) if self._way is None else (self._way,),
            retries=self._retries,
        )
        self._way = scored.way
        return scored.logprobs

    def tokenize(self, text: str) -> list[int] | None:
        """The server's own tokens of `text`, none added; None where it has no such route."""
        self._check_open()
        body = {
            "model": self._dialect.model,
            "prompt": text,  # vLLM, SGLang
            "add_special_tokens": False,
            "content": text,  # llama.cpp
            "add_special": False,
            "parse_special": True,
        }
        url = f"{root_url(self._client.base)}/tokenize"
        try:
            answer = self._client.send(url, body, flight=Flight(), retries=self._retries)
        except RefusedError as error:
            if error.status in (*MALFORMED, 404, 405, 501):
                return None
            raise
        tokens = answer.get("tokens")
        valid = isinstance(tokens, list) and all(isinstance(each, int) for each in tokens)
        return tokens if valid else None

    def _complete(
        self, prompt: Sequence[int], flight: Flight, *, max_tokens: int, **sampling: Any
    ) -> Generation:
        room_tokens = self.context_tokens - len(prompt)
        if room_tokens < 1:
            return Generation(token_ids=(), text="", stop=StopReason.CONTEXT)
        body = self._dialect.completion(
            prompt, self._tokenizer, max_tokens=min(max_tokens, room_tokens), **sampling
        )
        url = f"{self._client.base}/completions"
        choice = first_choice(self._client.send(url, body, flight=flight, retries=self._retries))
        stop = stop_reason(
            choice.get("finish_reason"), max_tokens=max_tokens, room_tokens=room_tokens
        )
        tokens = generated_ids(choice)
        if tokens is None:
            return from_text(choice["text"], stop, self._tokenizer)
        return from_tokens(tokens, stop, self._tokenizer)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeFailureError(f"the endpoint {self._client.base} was closed")

    def _check_length(self, n_tokens: int, most: int) -> None:
        if not 0 < n_tokens <= most:
            raise RuntimeFailureError(
                f"a sequence of {n_tokens} tokens",
                allowed=f"1 to {most}, what the context of {self.context_tokens} leaves",
                hint="serve the model with a longer context, or leave out long problems",
            )


def _result(future: Future[Generation], *, finished: int, total: int) -> Generation:
    try:
        return future.result()
    except RuntimeFailureError as error:
        raise RuntimeFailureError(
            f"{error.problem}\n{finished} of {total} completions were finished before and handed "
            "on",
            allowed=error.allowed,
            hint=error.hint,
        ) from error


def _system_info(base: str, opened: Opened, context_tokens: int) -> SystemInfo:
    """A server tells neither its threads nor its cache: 0 stands for unknown."""
    return SystemInfo(
        label=f"{server_name(opened)} at {host_of(base)}",
        device="served",
        threads=0,
        context_tokens=context_tokens,
        kv_type="unknown",
        kv_bytes=0,
        facts={
            "url": base,
            "model": opened.card.id,
            "server": opened.card.server or "unknown",
            "version": opened.version or "unknown",
            "prompts": "text" if opened.dialect.as_text else "token ids",
            "completions": "token ids" if opened.returns_ids else "text",
            "extensions": ", ".join(opened.dialect.extensions) or "refused",
            "remarks": "; ".join(opened.remarks),
        },
    )
