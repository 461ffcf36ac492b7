import pytest

from tightfit.drift.page.excerpt import SHOWN_CHARS, excerpt
from tightfit.drift.page.prose import to_html


@pytest.mark.parametrize("text", ["$x$", r"\(x\)", r"\boxed{x^{2_{3}}}", "a $x$, b"])
def test_inline_formulas(text):
    assert str(to_html(text)).count('<math display="inline">') == 1


@pytest.mark.parametrize("text", ["$$x$$", "\\[x\n+ y\\]", "So\n\n\\[x\\]\n\nand"])
def test_display_formulas(text):
    html = str(to_html(text))
    assert html.count('<div class="formula"><math display="block">') == 1
    assert "\n\n" not in html


@pytest.mark.parametrize(
    "text",
    ["$5 and $6", "it costs $5.", "$ x $", "$a\n\nb$", r"\$x\$", r"\[ never closed", r"\boxed{x"],
)
def test_what_is_no_formula_stays_as_it_is(text):
    assert to_html(text) == text


def test_several_formulas_between_text():
    html = str(to_html("If $a<b$ & $b$ then **c**\n### End\n* x"))
    assert html.count("<math") == 2
    assert "</math> &amp; <math" in html
    assert html.endswith("<strong>c</strong>\n<strong>End</strong>\n* x")


def test_markup_is_escaped():
    assert to_html("<b>**<i>**") == "&lt;b&gt;<strong>&lt;i&gt;</strong>"


def test_thought_and_answer_are_apart():
    shown = excerpt("thinking\n</think>\n\nanswer", forced_opening="<think>\n")
    assert shown.closed
    assert shown.thought is not None
    assert shown.answer is not None
    assert (shown.thought.head, shown.answer.head) == ("thinking", "answer")


def test_unclosed_thought_has_no_answer():
    shown = excerpt("thinking", forced_opening="<think>\n")
    assert not shown.closed
    assert shown.answer is None


def test_without_a_forced_opening_text_is_the_answer():
    shown = excerpt("it is 2", forced_opening="")
    assert shown.thought is None
    assert shown.closed
    assert shown.answer is not None
    assert shown.answer.head == "it is 2"


def test_long_text_is_cut_in_its_middle_at_lines():
    text = "\n".join(f"line {index}" for index in range(4000))
    shown = excerpt(text + "</think>", forced_opening="<think>\n")
    part = shown.thought
    assert part is not None
    assert part.n_chars == len(text)
    assert part.n_omitted == len(text) - len(part.head) - len(part.tail)
    assert SHOWN_CHARS - 400 <= len(part.head) + len(part.tail) <= SHOWN_CHARS
    assert part.head.startswith("line 0\n")
    assert part.tail.endswith("line 3999")
    lines = set(text.split("\n"))
    assert set((part.head + "\n" + part.tail).split("\n")) <= lines
