"""A server's log-probabilities of a prompt's tokens, as `TokenLogprobs`.

Two forms are read:

- vLLM's `prompt_logprobs`: for each token of the prompt null (the first) or an object from token id
  to {"logprob", "rank", "decoded_token"}, the token itself among them.
- OpenAI's legacy form of `echo` with `logprobs` (vLLM and SGLang answer so): `tokens`,
  `token_logprobs` and `top_logprobs`, the latter null or an object from token to log-probability.
  Tokens are strings, or `token_id:N` where the server knows `return_tokens_as_token_ids` (vLLM).

A string is mapped back by the tokenizer. One that is not exactly one token (a part of a character's
bytes, above all) is left out: it counts into the rest of the distribution, as what the server does
not list. Only where it is the most probable of its position there is no answer.

llama.cpp's server (b11549 tried) takes `echo` and returns the new token's log-probabilities only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tightfit.errors import LogprobsUnavailableError, RuntimeFailureError
from tightfit.runtimes.endpoint.completion import TokenizerLike
from tightfit.runtimes.logprobs import TokenLogprobs, check_logprobs

ID_PREFIX: Final = "token_id:"
REPLACEMENT: Final = "\ufffd"
"""What a part of a character decodes to; it stands for many tokens."""
ROUNDING: Final = 1e-4
"""By which a server's log-probability may exceed 0, and by which two of the same token may differ:
it computes in float32 or bfloat16."""

Entries = dict[int, float]
"""Token ids to log-probabilities of one position."""


def collect(entries_T: Sequence[Entries], next_tokens_T: Sequence[int]) -> TokenLogprobs:
    """Positions put together; every position holds the token that follows.

    Raises `LogprobsUnavailableError` for numbers that are no log-probabilities.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    offsets = [0]
    for entries in entries_T:
        ordered = sorted(entries.items(), key=lambda entry: (-entry[1], entry[0]))
        ids += [token for token, _ in ordered]
        logprobs += [logprob for _, logprob in ordered]
        offsets.append(len(ids))
    following = [entries[token] for entries, token in zip(entries_T, next_tokens_T, strict=True)]
    collected = TokenLogprobs(
        offsets=np.array(offsets, np.int64),
        ids_E=np.array(ids, np.int32),
        logprobs_E=_rounded(logprobs),
        next_logprobs_T=_rounded(following),
    )
    try:
        check_logprobs(collected)
    except ValueError as error:
        raise RuntimeFailureError(
            f"what came back are no log-probabilities: {error}",
            hint="the model overflows, or the server reports logits: look at its log and options",
        ) from error
    return collected


def _rounded(logprobs: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    values = np.array(logprobs, np.float32)
    return np.where((values > 0) & (values < ROUNDING), np.float32(0), values)


def from_prompt_logprobs(
    positions: Sequence[Any], tokens: Sequence[int], first_scored: int
) -> TokenLogprobs:
    """The form of vLLM; `tokens` is the whole prompt."""
    _check_count(positions, tokens)
    entries_T = []
    for index in range(first_scored, len(tokens)):
        try:
            entries = {int(key): float(each["logprob"]) for key, each in positions[index].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(f"prompt_logprobs[{index}] is {positions[index]!r}") from error
        if tokens[index] not in entries:
            raise _unreadable(f"prompt_logprobs[{index}] lacks token {tokens[index]} of the prompt")
        entries_T.append(entries)
    return collect(entries_T, tokens[first_scored:])


def from_echo(
    logprobs: Mapping[str, Any],
    tokens: Sequence[int],
    first_scored: int,
    tokenizer: TokenizerLike,
) -> TokenLogprobs:
    """The legacy form of OpenAI; the answer may hold generated tokens after those of the prompt."""
    try:
        strings, own, tops = (
            logprobs[name][: len(tokens)] for name in ("tokens", "token_logprobs", "top_logprobs")
        )
    except (KeyError, TypeError) as error:
        raise _unreadable(f"logprobs has {sorted(logprobs)}") from error
    for values in (strings, own, tops):
        _check_count(values, tokens)
    to_id = _Mapping(tokenizer)
    entries_T = []
    for index in range(first_scored, len(tokens)):
        try:
            position = _Position(
                index=index,
                token=tokens[index],
                string=str(strings[index]),
                logprob=float(own[index]),
                top={str(key): float(value) for key, value in tops[index].items()},
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise _unreadable(f"position {index} of logprobs is {tops[index]!r}") from error
        entries_T.append(position.entries(to_id))
    return collect(entries_T, tokens[first_scored:])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Position:
    """What the legacy form says of one token of the prompt."""

    index: int
    token: int
    string: str
    logprob: float
    top: Mapping[str, float]

    def entries(self, to_id: Callable[[str], int | None]) -> Entries:
        """By token id, the token itself among them."""
        said = to_id(self.string)
        if said is not None and said != self.token:
            raise _unreadable(f"token {self.index} is {self.string!r}, not {self.token} as sent")
        entries = {self.token: self.logprob}
        unknown = []
        for string, logprob in self.top.items():
            token = to_id(string)
            if token is not None:
                entries.setdefault(token, logprob)
            elif string != self.string or abs(logprob - self.logprob) > ROUNDING:
                unknown.append((logprob, string))
        if unknown and max(unknown)[0] > max(entries.values()):
            raise LogprobsUnavailableError(
                f"the most probable token at position {self.index}, {max(unknown)[1]!r}, is not "
                "one token of the tokenizer",
                allowed="log-probabilities by token id, or strings of whole tokens",
                hint="serve the model with vLLM, which names tokens by their ids, or measure the "
                "accuracy alone",
            )
        return entries


class _Mapping:
    """Strings to token ids; remembers, since the same tokens come again and again."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, int | None] = {}

    def __call__(self, string: str) -> int | None:
        if string not in self._ids:
            self._ids[string] = self._find(string)
        return self._ids[string]

    def _find(self, string: str) -> int | None:
        if string.startswith(ID_PREFIX) and string[len(ID_PREFIX) :].isdecimal():
            return int(string[len(ID_PREFIX) :])
        if REPLACEMENT in string:
            return None
        ids = self._tokenizer.encode(string)
        one = len(ids) == 1 and self._tokenizer.decode(ids) == string
        return ids[0] if one else None


def _check_count(values: object, tokens: Sequence[int]) -> None:
    if not isinstance(values, list) or len(values) != len(tokens):
        found = len(values) if isinstance(values, list) else "no"
        raise _unreadable(f"log-probabilities of {found} tokens, {len(tokens)} were sent")


def _unreadable(what: str) -> LogprobsUnavailableError:
    return LogprobsUnavailableError(
        f"the server's log-probabilities cannot be read: {what[:200]}",
        allowed="one position for each token of the prompt, as vLLM and SGLang give them",
        hint="measure the accuracy alone, or run the model in a runtime of this machine",
    )
