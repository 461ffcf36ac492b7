r"""What a model or a data set wrote, as HTML: text with its formulas.

Formulas are `$...$`, `$$...$$`, `\(...\)`, `\[...\]`, and a `\boxed{...}` outside of them. A single
dollar opens one as in Pandoc (extension `tex_math_dollars`): no space after the opening, none
before the closing, no digit behind the closing; and it does not reach over an empty line, so that
prices stay prices. `**bold**` and headings are read as Markdown, since R1 writes them in every
answer; everything else stays as it is.
"""

import re
from typing import Final

from markupsafe import Markup, escape

from tightfit.drift.page.mathml import to_mathml

_FORMULA: Final = re.compile(
    r"""
      (?<!\\)\$\$ (?P<dollars> .{1,2000}? ) \$\$
    | \\\[ (?P<brackets> .{1,2000}? ) \\\]
    | \\\( (?P<parentheses> .{1,2000}? ) \\\)
    | (?P<boxed> \\boxed\s*\{ (?: [^{}] | \{ (?: [^{}] | \{ [^{}]* \} )* \} )* \} )
    | (?<![\\$])\$ (?P<dollar> (?!\s) (?: \\. | [^$\\\n] | \n(?!\s*\n) )+? (?<!\s) ) \$ (?!\d)
    """,
    re.VERBOSE | re.DOTALL,
)
_EMPHASIS: Final = re.compile(r"\*\*([^*\n]+)\*\*|^#{1,6} +([^\n]+)$", re.MULTILINE)


def to_html(text: str) -> Markup:
    """Text with its formulas as MathML; white space is kept, for `white-space: pre-wrap`."""
    parts: list[Markup] = []
    end = 0
    after_display = False
    for match in _FORMULA.finditer(text):
        kind = match.lastgroup
        assert kind is not None
        display = kind in ("dollars", "brackets")
        parts.append(_plain(text[end : match.start()], after_display, display))
        formula = to_mathml(match[kind].strip(), display=display)
        parts.append(
            Markup('<div class="formula">{}</div>').format(formula) if display else formula
        )
        end, after_display = match.end(), display
    parts.append(_plain(text[end:], after_display, False))
    return Markup().join(parts)


def _plain(text: str, after_display: bool, before_display: bool) -> Markup:
    """Text between formulas; a block of its own needs no line breaks around it."""
    if after_display:
        text = text.lstrip()
    if before_display:
        text = text.rstrip()
    parts: list[Markup] = []
    end = 0
    for match in _EMPHASIS.finditer(text):
        parts += [
            escape(text[end : match.start()]),
            Markup("<strong>{}</strong>").format(match[1] or match[2]),
        ]
        end = match.end()
    return Markup().join([*parts, escape(text[end:])])
