r"""LaTeX to MathML that is safe to put in a page.

`latex2mathml` makes an element tree; it does not escape text (`\text{<script>}` stays a tag) and
lets attributes through (`\href`, `\style`, `\class`). So the tree is never serialised by it: what
is written here are only elements of MathML Core (https://www.w3.org/TR/mathml-core/), attributes
and values from a list, and escaped text. `\boxed`, whose `menclose` MathML Core lacks, becomes a
row with a class that the style sheet draws a box around.
"""

import html
import re
from typing import Final
from xml.etree.ElementTree import Element

from markupsafe import Markup, escape

from tightfit.errors import MissingPackageError

MAX_LATEX_CHARS: Final = 2000
"""A longer formula is a loop, and the converter's time grows faster than its length."""

_ELEMENTS: Final = frozenset(
    {
        "math",
        "mfrac",
        "mi",
        "mn",
        "mo",
        "mover",
        "mpadded",
        "mphantom",
        "mroot",
        "mrow",
        "mspace",
        "msqrt",
        "mstyle",
        "msub",
        "msubsup",
        "msup",
        "mtable",
        "mtd",
        "mtext",
        "mtr",
        "munder",
        "munderover",
    }
)
_ATTRIBUTES: Final = {
    "accent": "true|false",
    "columnalign": r"(?:left|center|right)(?: (?:left|center|right))*",
    "depth": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
    "display": "inline|block",
    "displaystyle": "true|false",
    "fence": "true|false",
    "form": "prefix|infix|postfix",
    "height": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
    "linethickness": r"\d?(?:\.\d+)?(?:em|ex|pt|px)?",
    "lspace": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
    "mathvariant": "normal|bold|italic|bold-italic|monospace|sans-serif",
    "maxsize": r"\d?(?:\.\d+)?em",
    "minsize": r"\d?(?:\.\d+)?em",
    "movablelimits": "true|false",
    "rspace": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
    "scriptlevel": r"[+-]?[0-3]",
    "stretchy": "true|false",
    "voffset": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
    "width": r"-?\d?(?:\.\d+)?(?:em|ex|pt)",
}
"""Attributes and the values they may have; lengths below 10 units, so that no formula covers
another part of the page."""
_MACRO: Final = re.compile(
    r"\\(?:newcommand|renewcommand|def|newenvironment|DeclareMathOperator)\b"
)
"""A few of them expand to gigabytes."""
_CHARACTER: Final = re.compile(r"&#x[0-9A-Fa-f]{1,6};")
"""What the converter writes for a symbol, as text."""


def to_mathml(latex: str, *, display: bool) -> Markup:
    """The formula as MathML, or its source as `<code>` where it cannot be converted.

    Raises `MissingPackageError` without latex2mathml.
    """
    try:
        from latex2mathml.converter import convert_to_element
    except ImportError as error:
        raise MissingPackageError(
            "the formulas of the report need the package latex2mathml, which is not installed",
            hint="install it: pip install 'tightfit[drift]'",
        ) from error
    source = Markup("<code>{}</code>").format(latex)
    if not latex.strip() or len(latex) > MAX_LATEX_CHARS or _MACRO.search(latex):
        return source
    try:
        math = convert_to_element(latex, display="block" if display else "inline")
        return _markup(math)
    except Exception:  # whatever a model wrote: the converter has no common error class
        return source


def _markup(element: Element) -> Markup:
    """The element and what is in it, as far as it is allowed; others leave their content."""
    content = Markup().join([_text(element.text), *(_markup(child) for child in element)])
    # The converter gives no element a tail; what a later version put there would be text as well.
    content += Markup().join(_text(child.tail) for child in element)
    if element.tag == "menclose":
        boxed = "box" in element.get("notation", "")
        return Markup('<mrow class="boxed">{}</mrow>' if boxed else "<mrow>{}</mrow>").format(
            content
        )
    if element.tag not in _ELEMENTS:
        return Markup("<mrow>{}</mrow>").format(content)
    attributes = Markup().join(
        Markup(' {}="{}"').format(name, value)
        for name, value in element.items()
        if name in _ATTRIBUTES and re.fullmatch(_ATTRIBUTES[name], value)
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(element.tag), attributes, content)


def _text(text: str | None) -> Markup:
    return escape(_CHARACTER.sub(lambda match: html.unescape(match[0]), text or ""))
