"""JSON over HTTP: one request with its retries, and what each failure means to the user.

Retried, with exponential backoff and full jitter (Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015) or as long as the server's Retry-After asks: connections that fail or
break, statuses 429 and 5xx, answers that end early. Not retried: what the server refuses, and an
answer that takes longer than the time limit, since it would take as long again.
"""

import email.utils
import http.client
import json
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.endpoint.address import KEY_VARIABLES, host_of
from tightfit.runtimes.endpoint.flight import CancelledError, Flight

SHOWN_CHARACTERS: Final = 300
"""Of the server's answer in an error message."""
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Statuses of a server that may answer later; 529 is what some proxies send when overloaded."""
MALFORMED: Final = frozenset({400, 422})
"""Statuses of a server that does not take the request as it is written."""
LONGEST_RETRY_AFTER_S: Final = 600.0
"""Longest pause that a server may ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How often a request is sent, and the pauses between."""

    attempts: int = 6
    """In all: with the pauses below the last is sent half a minute after the first on average."""
    first_wait_s: float = 1.0
    """Upper bound of the first pause; each further one is twice as long."""
    longest_wait_s: float = 60.0

    def wait_s(self, failures: int) -> float:
        """The pause after a number of failures."""
        bound = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)
        # Unseeded on purpose: clients that failed together must not come back together.
        return random.uniform(0, bound)


ONCE: Final = Retries(attempts=1)
GET_TIMEOUT_S: Final = 60.0
"""Longest wait for what a server knows without computing."""


class RefusedError(RuntimeFailureError):
    """The server answered with an error status."""

    def __init__(
        self, problem: str, *, status: int, answer: str, allowed: str = "", hint: str = ""
    ) -> None:
        """As in `TightfitError`; `answer` is what the server wrote."""
        super().__init__(problem, allowed=allowed, hint=hint)
        self.status = status
        self.answer = answer


class _RetryableError(Exception):
    """Something that a second try may mend."""

    def __init__(self, failure: RuntimeFailureError, wait_s: float | None = None) -> None:
        super().__init__(failure)
        self.failure = failure
        self.wait_s = wait_s
        """What the server asked for."""


class JsonClient:
    """Sends JSON to one server and reads JSON from it; thread-safe."""

    def __init__(self, base: str, *, key: str | None, timeout_s: float) -> None:
        self.base = base
        self._timeout_s = timeout_s
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        self._has_key = key is not None
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def send(
        self,
        url: str,
        body: Mapping[str, Any] | None = None,
        *,
        flight: Flight,
        retries: Retries,
    ) -> dict[str, Any]:
        """POST `body`, or GET where there is none; the answer, which is a JSON object.

        Raises `RefusedError`, `RuntimeFailureError`, and `CancelledError` in a flight that was
        broken off.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=self._headers)
        for failures in range(1, retries.attempts + 1):
            try:
                return self._send_once(request, flight)
            except _RetryableError as error:
                if failures == retries.attempts:
                    raise error.failure from error
                pause_s = retries.wait_s(failures) if error.wait_s is None else error.wait_s
                flight.pause(pause_s)
        raise AssertionError("at least one attempt")

    def _send_once(self, request: urllib.request.Request, flight: Flight) -> dict[str, Any]:
        if flight.cancelled:
            raise CancelledError
        try:
            with flight.opener.open(request, timeout=self._wait_s(request)) as response:
                content, kind = response.read(), response.headers.get("Content-Type", "")
        except CancelledError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if flight.cancelled:
                raise CancelledError from error
            if isinstance(error, urllib.error.HTTPError):
                with error:
                    raise self._refusal(error) from error
            raise self._broken(error, request) from error
        return self._parse(content, kind, request.full_url)

    def _wait_s(self, request: urllib.request.Request) -> float:
        return self._timeout_s if request.data else min(self._timeout_s, GET_TIMEOUT_S)

    def _parse(self, content: bytes, kind: str, url: str) -> dict[str, Any]:
        shown = _shown(content)
        try:
            answer = json.loads(content)
        except ValueError as error:
            if "html" in kind or content.lstrip()[:1] == b"<":
                raise RuntimeFailureError(
                    f"{url} answers with a web page: {shown}",
                    allowed="an OpenAI-compatible server, which answers with JSON",
                    hint="is this the address of the server itself, and not of a page in front "
                    "of it?",
                ) from error
            # Half a JSON document: the connection was cut without a Content-Length to tell.
            raise _RetryableError(
                RuntimeFailureError(f"{url} answers with what is no JSON: {shown}")
            ) from error
        if not isinstance(answer, dict):
            raise RuntimeFailureError(
                f"{url} answers with {shown}", allowed="a JSON object, as OpenAI's interface has"
            )
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        status, url = error.code, error.geturl()
        try:
            answer = _shown(error.read())
        except (OSError, http.client.HTTPException):
            answer = ""  # the status says what matters
        name = f"{status} {_phrase(status)}".strip()
        problem = f"{url} answers {name}: {answer}" if answer else f"{url} answers {name}"
        allowed, hint = self._advice(status, error.headers.get("Location"))
        failure = RefusedError(problem, status=status, answer=answer, allowed=allowed, hint=hint)
        if status in BUSY:
            return _RetryableError(failure, _retry_after_s(error.headers.get("Retry-After")))
        return failure

    def _advice(self, status: int, location: str | None) -> tuple[str, str]:
        """What is allowed, and what to do."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            sent = "the key that is there was refused" if self._has_key else "none is set"
            return f"a key in the environment variable {' or '.join(KEY_VARIABLES)}", sent
        if status == HTTPStatus.NOT_FOUND:
            return (
                f"a server with the routes of OpenAI's interface under {self.base}",
                "is the path right (most servers end in /v1), and the model's name?",
            )
        if location is not None:
            return "", f"the server points to {location}: give that address"
        if status in BUSY:
            return "", "the server is overloaded or broken: look at its log, then run again"
        return "", ""

    def _broken(
        self, error: OSError | http.client.HTTPException, request: urllib.request.Request
    ) -> Exception:
        host = host_of(self.base)
        if isinstance(error, TimeoutError):
            return RuntimeFailureError(
                f"{host} did not answer within {self._wait_s(request):g} s",
                hint="give it more time, fewer requests at a time, or ask for fewer tokens",
            )
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return RuntimeFailureError(
                f"no safe connection to {host}: {reason}",
                hint="is it http:// instead of https://? For a certificate of your own set the "
                "environment variable SSL_CERT_FILE",
            )
        if isinstance(error, http.client.IncompleteRead):
            return _RetryableError(
                RuntimeFailureError(
                    f"the answer of {host} ended after {len(error.partial)} bytes",
                    hint="did the server die? look at its log",
                )
            )
        if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
            return RuntimeFailureError(
                f"{host} does not speak HTTP: {error!r}",
                hint="is it https:// instead of http://, or another port?",
            )
        return _RetryableError(
            RuntimeFailureError(
                f"no connection to {host}: {reason}",
                hint="is the server running, has it finished loading, and is the address right?",
            )
        )


def _shown(content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _phrase(status: int) -> str:
    known = {each.value: each.phrase for each in HTTPStatus}
    return known.get(status, "")


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
