"""Asking a server for the log-probabilities of a prompt's tokens, in the ways that servers know.

Tried in turn: `prompt_logprobs` (vLLM: by token id), then `echo` with `logprobs` (OpenAI's legacy
form, which SGLang has too). A server that does not know a field ignores it or refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from tightfit.errors import LogprobsUnavailableError
from tightfit.runtimes.endpoint.completion import TokenizerLike
from tightfit.runtimes.endpoint.flight import Flight
from tightfit.runtimes.endpoint.http import MALFORMED, JsonClient, RefusedError, Retries
from tightfit.runtimes.endpoint.logprobs import from_echo, from_prompt_logprobs
from tightfit.runtimes.endpoint.requests import Dialect, first_choice
from tightfit.runtimes.logprobs import TokenLogprobs

TOP_LOGPROBS: Final = (20, 5)
"""Tokens asked for at each position, in the order of trying: vLLM's limit and OpenAI's."""


class Way(Enum):
    """How log-probabilities are asked for."""

    PROMPT_LOGPROBS = "prompt_logprobs"
    ECHO = "echo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What one way gave."""

    logprobs: TokenLogprobs
    way: Way


def score(
    client: JsonClient,
    dialect: Dialect,
    tokens: Sequence[int],
    first_scored: int,
    tokenizer: TokenizerLike,
    *,
    ways: Sequence[Way],
    retries: Retries,
) -> Scored:
    """The first way that the server knows; raises `LogprobsUnavailableError` where it knows none.

    `tokens` is the whole sequence, those from `first_scored` on are predicted.
    """
    said = "its answer holds none"
    for way in ways:
        try:
            choice = _ask(client, dialect, tokens, way, retries)
        except RefusedError as error:
            if error.status not in MALFORMED:
                raise
            said = error.answer
            continue
        found = _read(choice, way, tokens, first_scored, tokenizer)
        if found is not None:
            return Scored(logprobs=found, way=way)
    raise LogprobsUnavailableError(
        f"the server gives no log-probabilities of a prompt's tokens: {said}",
        allowed="`prompt_logprobs` (vLLM) or `echo` with `logprobs` (vLLM, SGLang)",
        hint="measure the accuracy alone, or serve the model with vLLM",
    )


def _ask(
    client: JsonClient, dialect: Dialect, tokens: Sequence[int], way: Way, retries: Retries
) -> Mapping[str, Any]:
    """The choice, with as many tokens a position as are allowed; raises the last refusal."""
    for n_top in TOP_LOGPROBS:
        body = {
            "model": dialect.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            # Some servers divide logits by it before they report them.
            "temperature": 1.0,
            "stream": False,
            **_fields(way, n_top),
        }
        url = f"{client.base}/completions"
        try:
            return first_choice(client.send(url, body, flight=Flight(), retries=retries))
        except RefusedError as error:
            if error.status not in MALFORMED or n_top == TOP_LOGPROBS[-1]:
                raise
    raise AssertionError("the last number was tried")


def _fields(way: Way, n_top: int) -> dict[str, Any]:
    if way is Way.PROMPT_LOGPROBS:
        return {"prompt_logprobs": n_top}
    return {"echo": True, "logprobs": n_top, "return_tokens_as_token_ids": True}


def _read(
    choice: Mapping[str, Any],
    way: Way,
    tokens: Sequence[int],
    first_scored: int,
    tokenizer: TokenizerLike,
) -> TokenLogprobs | None:
    """None where the server took no notice of the fields."""
    if way is Way.PROMPT_LOGPROBS:
        positions = choice.get("prompt_logprobs")
        if positions is None:
            return None
        return from_prompt_logprobs(positions, tokens, first_scored)
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict) or not logprobs.get("top_logprobs"):
        return None
    return from_echo(logprobs, tokens, first_scored, tokenizer)
