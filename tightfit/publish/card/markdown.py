"""Text into Markdown: whatever a name or a sentence holds, it shows as itself.

The Hub renders CommonMark with GitHub's tables and strikethrough, and formulas between dollars.
`Markdown` marks what is markup already; the template escapes everything else (`finalize`).
"""

import re
import shlex
from collections.abc import Sequence
from typing import Final

_MARKUP: Final = re.compile(r"[\\`*\[\]<>&|~$#]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning inside a line; an underscore within a word has none."""
_BREAKS: Final = re.compile(r"[\s\x00-\x1f\x7f]+")
BREAK: Final = " \\\n    "
"""Between the lines of one shell command."""


class Markdown(str):
    """Text that is Markdown, not to be escaped again."""

    __slots__ = ()


def finalize(value: object) -> Markdown:
    """A value as the template writes it."""
    return value if isinstance(value, Markdown) else text(str(value))


def text(value: str) -> Markdown:
    """A line that shows as given; line breaks become spaces."""
    return Markdown(_MARKUP.sub(r"\\\g<0>", _one_line(value)))


def code(value: str) -> Markdown:
    """Inline code, not in a table."""
    line = _one_line(value)
    fence = _fence(line, shortest=1)
    # A space inside keeps a backtick at the end apart from the fence; CommonMark strips it.
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}")


def cell_code(value: str) -> Markdown:
    """Inline code in a table, whose bars GitHub's Markdown splits even there."""
    return Markdown(code(value).replace("|", "\\|"))


def link(shown: str, url: str) -> Markdown:
    """A link with code as its text; `url` is one of ours or made of a checked Hub id."""
    return Markdown(f"[{code(shown)}]({url})")


def block(language: str, lines: Sequence[str]) -> Markdown:
    """A fenced block of code."""
    body = "\n".join(lines)
    fence = _fence(body, shortest=3)
    return Markdown(f"{fence}{language}\n{body}\n{fence}")


def command(*words: str) -> str:
    """A shell command with its words quoted where they must be."""
    return shlex.join(words)


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _one_line(value: str) -> str:
    return _BREAKS.sub(" ", value).strip()


def _fence(value: str, *, shortest: int) -> str:
    longest = max(map(len, re.findall("`+", value)), default=0)
    return "`" * max(shortest, longest + 1)
