"""Failures of the Hub and of its client, told as what happened, what holds now and what to do."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tightfit.errors import PublishError
from tightfit.publish.secrets import mask

_MAX_SAID: Final = 300
"""Characters of a server's own words: enough for a sentence, too few for a page of HTML."""
_FIRST_OF_SERVER: Final = 500
_AGAIN: Final = "run the same command again: it continues where it was"
_TOKENS: Final = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meaning:
    what: str
    needed: str = ""
    hint: str


_BY_STATUS: Final[Mapping[int, _Meaning]] = {
    401: _Meaning(
        what="the Hub does not know who you are: the token is missing, wrong or expired",
        needed="a token with write access to {owner}",
        hint=f"log in with `hf auth login`, or set HF_TOKEN (tokens: {_TOKENS}), and {_AGAIN}",
    ),
    403: _Meaning(
        what="the token may not do this",
        needed="a token of the role `write`, or a fine-grained one with write access to {owner}",
        hint=f"make one at {_TOKENS}, log in with `hf auth login`, and {_AGAIN}",
    ),
    404: _Meaning(
        what="there is no such thing, or the token cannot see it",
        needed="a repository of {owner} that the token can see",
        hint=f"check the names, and whose token it is (`hf auth whoami`), and {_AGAIN}",
    ),
    409: _Meaning(
        what="the repository was changed by somebody else meanwhile",
        hint="run the same command again: it looks at the new state first",
    ),
    413: _Meaning(
        what="this is too large for the Hub",
        hint="export in smaller files (tightfit export --split-max-size 40G), or see "
        "https://huggingface.co/docs/hub/storage-limits",
    ),
    429: _Meaning(
        what="too many requests",
        hint=f"wait {{wait}}, then {_AGAIN}",
    ),
}
_CONFLICTS: Final = {412: 409}
"""The Hub answers 412 when the parent of a commit is no longer the head."""


def explain(
    error: BaseException, *, doing: str, state: str, owner: str, token: str | None
) -> PublishError:
    """The failure of one step.

    `doing` names the step, `state` says what is in the repository now.
    """
    response = _response(error)
    if response is None:
        what, hint = _without_answer(error)
        return PublishError(
            mask(f"{doing}: {what}", token), allowed=sentence(state), hint=f"{hint}, and {_AGAIN}"
        )
    status: int = response.status_code
    meaning = _BY_STATUS.get(_CONFLICTS.get(status, status)) or _of_other(status)
    said = mask(_server_message(error), token)
    return PublishError(
        f"{doing}: {meaning.what} (HTTP {status}{': ' + said if said else ''})",
        allowed=sentence(state)
        + (f". Needed: {meaning.needed.format(owner=owner)}" if meaning.needed else ""),
        hint=meaning.hint.format(wait=_wait(response.headers)),
    )


def is_definite(error: BaseException) -> bool:
    """Whether the Hub refused: after anything else it may have done what it was asked."""
    response = _response(error)
    return response is not None and response.status_code < _FIRST_OF_SERVER


def leaks(error: BaseException, token: str | None) -> bool:
    """Whether a traceback of the error would show a token."""
    return any(mask(str(each), token) != str(each) for each in _chain(error))


def _of_other(status: int) -> _Meaning:
    if status >= _FIRST_OF_SERVER:
        return _Meaning(what="the Hub itself failed", hint=f"wait a little, and {_AGAIN}")
    return _Meaning(what="the Hub refuses this", hint=f"mend what it says, and {_AGAIN}")


def _without_answer(error: BaseException) -> tuple[str, str]:
    """What happened and what to do when no server answered."""
    from huggingface_hub import errors

    broken = (errors.HTTPError, ConnectionError, TimeoutError)  # type: ignore[attr-defined]
    for each in _chain(error):
        if isinstance(each, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set", "unset it"
        if isinstance(each, broken):
            said = f"{type(each).__name__}: {each}".removesuffix(": ")
            return f"the connection broke or timed out ({said})", "check the connection"
    return f"{type(error).__name__}: {error}", "mend what it says"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it: the client wraps failures of its threads."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    """The server's answer, of whichever HTTP library this version of the client uses."""
    answers = (getattr(each, "response", None) for each in _chain(error))
    return next((answer for answer in answers if answer is not None), None)


def _server_message(error: BaseException) -> str:
    said = next(filter(None, (getattr(e, "server_message", None) for e in _chain(error))), "")
    line = " ".join(said.split())
    return line if len(line) <= _MAX_SAID else line[:_MAX_SAID] + " ..."


def _wait(headers: Mapping[str, str]) -> str:
    """How long the Hub asks to wait: `Retry-After`, or `t` of its own `RateLimit`."""
    asked: str = headers.get("Retry-After", "")
    found = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    seconds = asked or (found[1] if found else "")
    if seconds.isdigit():
        return f"{seconds} s, as the Hub asks"
    return f"until {seconds}, as the Hub asks" if seconds else "some minutes"


def sentence(text: str) -> str:
    """The text with a capital."""
    return text[:1].upper() + text[1:]
