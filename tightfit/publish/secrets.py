"""Tokens out of texts: what a library or a server says may repeat what it was sent."""

import re
from typing import Final

HIDDEN: Final = "***"
_PATTERNS: Final = (
    (re.compile(r"hf_(?:oauth_|jwt_)?[\w.-]{16,}"), HIDDEN),  # the Hub's own form
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\"]+"), rf"\1 {HIDDEN}"),
    # A signed address is as good as a token for what it leads to.
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), rf"\1?{HIDDEN}"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), rf"\1{HIDDEN}@"),
)


def mask(text: str, token: str | None) -> str:
    """The text without `token`, and without anything that looks like one."""
    if token:
        text = text.replace(token, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
