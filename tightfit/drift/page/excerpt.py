"""An answer in two parts, the thought and what follows it, each cut to what one reads."""

from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from tightfit.drift.grading import THINK_END
from tightfit.drift.page.prose import to_html

THINK_BEGIN: Final = "<think>"
SHOWN_CHARS: Final = 6000
"""Of a part: its beginning and its end, half each. A whole thought may be 100,000."""
LINE_CHARS: Final = 200
"""How far a cut moves to a line's end: a cut within a formula would spoil it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A text as shown."""

    head: Markup
    tail: Markup
    """Empty when nothing was left out."""
    n_chars: int
    """Of the whole."""
    n_omitted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Excerpt:
    """An answer as shown."""

    thought: Part | None
    closed: bool
    """Whether the thought ended."""
    answer: Part | None
    """What follows the thought; None when there is nothing."""


def excerpt(text: str, *, forced_opening: str) -> Excerpt:
    """The two parts of a completion that follows `forced_opening`."""
    thought, marker, answer = text.rpartition(THINK_END)
    if not marker and THINK_BEGIN in forced_opening + text:
        thought, answer = answer, ""
    thought = thought.strip().removeprefix(THINK_BEGIN).strip()
    return Excerpt(
        thought=_part(thought) if thought else None,
        closed=bool(marker) or not thought,
        answer=_part(answer.strip()) if answer.strip() else None,
    )


def _part(text: str) -> Part:
    if len(text) <= SHOWN_CHARS:
        return Part(head=to_html(text), tail=Markup(), n_chars=len(text), n_omitted=0)
    head_end, tail_start = SHOWN_CHARS // 2, len(text) - SHOWN_CHARS // 2
    line_end = text.rfind("\n", head_end - LINE_CHARS, head_end)
    line_start = text.find("\n", tail_start, tail_start + LINE_CHARS)
    head_end = head_end if line_end < 0 else line_end
    tail_start = tail_start if line_start < 0 else line_start + 1
    return Part(
        head=to_html(text[:head_end]),
        tail=to_html(text[tail_start:]),
        n_chars=len(text),
        n_omitted=tail_start - head_end,
    )
