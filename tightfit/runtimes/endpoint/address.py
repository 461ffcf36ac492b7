"""Where the server is, and the key to it."""

import os
from typing import Final
from urllib.parse import urlsplit

from tightfit.errors import UsageError

KEY_VARIABLES: Final = ("TIGHTFIT_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key; the first that is set is sent."""
API_SUFFIX: Final = "/v1"
"""What the base of an OpenAI-compatible server ends in."""


def base_url(url: str) -> str:
    """The base that the routes are under, which ends in /v1; raises `UsageError` for no URL."""
    allowed = "http:// or https:// with a host, such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        valid = False
    if not valid:
        raise UsageError(
            f"{url!r} is not the URL of a server",
            allowed=allowed,
            hint="give the address that the server printed when it started",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            # The URL is not repeated: it may hold a password.
            "the URL of the server holds a user name, a query or a fragment",
            allowed=allowed,
            hint=f"put the key into the environment variable {KEY_VARIABLES[0]}",
        )
    path = parts.path.rstrip("/")
    if not path.endswith(API_SUFFIX):
        path += API_SUFFIX
    return f"{parts.scheme}://{parts.netloc}{path}"


def root_url(base: str) -> str:
    """Where the routes are that OpenAI's interface does not have, such as /tokenize."""
    return base.removesuffix(API_SUFFIX)


def host_of(base: str) -> str:
    """Host and port, for messages and labels."""
    return urlsplit(base).netloc


def api_key() -> str | None:
    """The key in the environment, if any."""
    values = (os.environ.get(name, "").strip() for name in KEY_VARIABLES)
    return next((value for value in values if value), None)
