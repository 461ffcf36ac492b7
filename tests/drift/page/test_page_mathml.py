"""Formulas: what an HTML parser makes of them is MathML and nothing else."""

import time
from html.parser import HTMLParser

import pytest

from tightfit.drift.page.mathml import MAX_LATEX_CHARS, to_mathml


class Tags(HTMLParser):
    """What is in a piece of HTML, read by Python's own parser."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_fraction():
    parsed = Tags(to_mathml(r"\frac{14}{3}", display=True))
    assert parsed.tags == ["math", "mrow", "mfrac", "mrow", "mn", "mrow", "mn"]
    assert parsed.text == "143"
    assert ("display", "block") in parsed.attributes


def test_symbols_are_characters():
    assert Tags(to_mathml(r"x < 3 \le \pi", display=False)).text == "x<3≤π"


def test_boxed_is_a_row_that_the_style_sheet_frames():
    assert '<mrow class="boxed">' in to_mathml(r"\boxed{2}", display=False)


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<script>alert(1)</script>}",
        r"\text{<img src=x onerror=alert(1)>}",
        r"\text{</math><script>alert(1)</script>}",
        r"\text{&lt;script&gt;alert(1)&lt;/script&gt;}",
        r"\text{&#x3C;script&#x3E;alert(1)}",
        r"\href{javascript:alert(1)}{\text{<a href='javascript:alert(1)'>x</a>}}",
        r"\style{background:url(https://example.org/x)}{x}",
        r"\class{verdict pass}{x}",
        r'\textcolor{red" onclick="alert(1)}{x}',
        r"\color{expression(alert(1))}{x}",
        r"\mathrm{<iframe src=x>}",
        r"\operatorname{<svg onload=alert(1)>}",
        r"\begin{array}{c} <style>*{display:none}</style> \end{array}",
        r"<script>alert(1)</script>",
        r"x \hspace{-500em} y",
    ],
)
def test_hostile_formulas_stay_text(latex):
    parsed = Tags(to_mathml(latex, display=False))
    allowed = {"math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "mstyle", "mtable", "mtr"}
    assert set(parsed.tags) <= allowed | {"mtd", "code"}
    names = {name for name, _ in parsed.attributes}
    assert not names & {"href", "style", "class", "mathcolor", "src", "onerror", "onclick"}
    assert not any("500" in (value or "") for _, value in parsed.attributes)


@pytest.mark.parametrize(
    "latex",
    [
        "",
        "^",
        r"\frac{1}{",
        r"\left( x",
        "x^2^2",
        "{" * 1900,
        r"\begin{nonsense}",
        r"\newcommand{\a}{xx}\newcommand{\b}{\a\a}\b",
        r"\def\a{x}\a",
        "x" * (MAX_LATEX_CHARS + 1),
    ],
)
def test_what_cannot_be_converted_is_shown_as_source(latex):
    parsed = Tags(to_mathml(latex, display=True))
    assert parsed.tags == ["code"]
    assert parsed.text == latex


def test_a_catastrophic_formula_takes_no_time():
    begun = time.monotonic()
    for latex in ("{" * 1990, r"\frac" * 390, "a" * 1990, r"\left(" * 330, "a_" * 990):
        to_mathml(latex, display=False)
    assert time.monotonic() - begun < 5
