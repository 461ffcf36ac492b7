"""The page as text; `test_page_in_chromium` sees it as a browser does."""

import dataclasses
import itertools
import re
import sys
from html.parser import HTMLParser

import pytest
from support.drift_reports import report

from tightfit.drift.gate import Outcome, SequentialStop
from tightfit.drift.page.render import render_page, write_page
from tightfit.drift.page.table import short_names
from tightfit.errors import DriftError, MissingPackageError

VOID = {"meta", "link", "wbr"}


class Page(HTMLParser):
    """Structure of the page; fails on elements that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def one():
    return render_page([report()])


def four():
    outcomes = (Outcome.PASS, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL)
    sizes = (
        ("Q8_0", 0.0004, 8.5),
        ("Q6_K", 0.001, None),
        ("Q4_K_M", 0.004, 4.85),
        ("Q2_K", 0.2, 3),
    )
    return [
        report(outcome, name=f"R1-Distill-7B-{scheme}.gguf", kl=kl, bits_per_weight=bits)
        for outcome, (scheme, kl, bits) in zip(outcomes, sizes, strict=True)
    ]


def test_page_nests_and_needs_nothing_else(one):
    page = Page(one)
    assert page.elements[0] == ("html", {"lang": "en"})
    assert not page.all("script")
    assert not page.all("img")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not re.search(r"@import|url\((?!#)", one)
    references = re.findall(r'(?:href="|url\()#([^")]+)', one)
    ids = re.findall(r' id="([^"]+)"', one)
    assert len(ids) == len(set(ids))
    assert references
    assert set(references) <= set(ids)


def test_same_reports_give_the_same_page(one):
    assert render_page([report()]) == one
    assert not re.search(r"matplotlib|dc:date", one)


@pytest.mark.parametrize(
    ("outcome", "symbol"), [(Outcome.PASS, "✓"), (Outcome.FAIL, "✕"), (Outcome.INCONCLUSIVE, "?")]
)
def test_verdict_is_a_word_with_its_symbol_and_reasons(outcome, symbol):
    page = render_page([report(outcome)])
    text = re.sub(r"<[^>]+>", "", page[page.index('<div class="verdict') :])
    assert f'<div class="verdict {outcome.value}">' in page
    assert text.split()[:2] == [symbol, outcome.value.upper()]
    assert "Accuracy drop +3.12 points [-3.90, +11.20] on 64 problems, limit 2." in text
    needed = "About 420 problems would decide the accuracy drop; this run had 64."
    assert (needed in text) == (outcome is Outcome.INCONCLUSIVE)


def test_sequential_stop_is_told():
    stop = SequentialStop(
        looked_at=120, available=500, pass_evidence=25.0, fail_evidence=0.01, threshold=20.0
    )
    decision = dataclasses.replace(report().decision, sequential=stop)
    page = render_page([dataclasses.replace(report(), decision=decision)])
    assert "looked at 120 of 500 problems" in page


def test_figures_of_the_report_are_in_the_tables(one):
    page = Page(one)
    for figure in ("93.8", "90.6", "[85.0, 97.5]", "+3.12", "[−3.90, +11.20]", "[−3.10, +9.40]"):
        assert figure in page.text
    for figure in ("0.00400", "[0.00320, 0.00480]", "4.00\u202f×\u202f10⁻⁵", "98.50", "99.98"):
        assert figure in page.text
    for figure in ("1.312", "1.319", "4.85", "4.36\u202fGiB", "0.970", "1.04", "861"):
        assert figure in page.text
    assert len(page.all("caption")) == len(page.all("table")) == 5
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_headings_leave_no_level_out(one):
    for html in (one, render_page(four())):
        levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_charts_are_images_with_text_that_is_text(one):
    page = Page(one)
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 4
    assert all(len(svg["aria-label"]) > 40 for svg in charts)
    assert {"10⁻²", "bits per weight", "token of the answer"} <= set(page.text.split("\n"))
    assert not re.search(r"stroke: #|fill: #|font-family: '", one)


def test_several_are_side_by_side():
    html = render_page(four())
    page = Page(html)
    assert html.count('<div class="verdict ') == 4
    assert {"Q8_0", "Q6_K", "Q4_K_M", "Q2_K"} <= set(page.text.split("\n"))
    assert html.count("<math") > 4
    distinct = set(re.findall(r"--series-\d\)", html))
    assert len(distinct) == 4


def test_chart_of_sizes_needs_a_known_size():
    assert "Size against drift" not in render_page([report(bits_per_weight=None)])
    assert "Size against drift" in render_page([report()])


def test_without_token_drift_the_reason_is_told():
    absent = dataclasses.replace(
        report(),
        tokens=None,
        noise_floor=None,
        tokens_absent="the server gives no log-probabilities",
    )
    page = Page(render_page([absent]))
    assert "the server gives no log-probabilities" in page.text
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 1
    several = render_page([absent, report(name="b.gguf")])
    assert Page(several)


def test_drift_of_nothing_draws_what_it_can():
    """The baseline against itself: KL 0 has no place on a logarithmic axis."""
    tokens = report().tokens
    assert tokens is not None
    zero = dataclasses.replace(
        tokens,
        kl_mean_nats=0.0,
        kl_interval_nats=None,
        by_position=tuple(dataclasses.replace(b, kl_mean_nats=0.0) for b in tokens.by_position),
        by_kl=(dataclasses.replace(tokens.by_kl[0], low=0.0, high=1e-8, kl_mean_nats=0.0),),
        confident=None,
    )
    html = render_page([dataclasses.replace(report(), tokens=zero, noise_floor=zero)])
    assert "Drift along the answer" not in html
    assert "Distribution of drift" in html


def test_what_models_write_stays_text():
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>\ud800"
    flip = report().flips[0]
    attacked = dataclasses.replace(
        report(name=hostile),
        command=hostile,
        flips=(
            dataclasses.replace(
                flip,
                unique_id=hostile,
                problem=hostile,
                gold=r"\text{" + hostile + "}",
                artifact_text=f"{hostile} $\\href{{javascript:alert(1)}}{{x}}$</think>{hostile}",
            ),
        ),
    )
    for reports in ([attacked], [attacked, report()]):
        page = Page(render_page(reports))
        assert not page.all("script")
        assert not page.all("img")
        assert not any(
            name.startswith("on") or "javascript" in (value or "")
            for tag, attributes in page.elements
            for name, value in attributes.items()
            if (tag, name) != ("svg", "aria-label")
        )
        assert page.text.count("<script>alert(1)</script>") >= 6


def test_thoughts_are_folded_and_cut():
    flip = dataclasses.replace(report().flips[0], artifact_text="so\n" * 10_000)
    html = render_page([dataclasses.replace(report(), flips=(flip,))])
    assert html.count("<details>") == 2
    assert "Thought, never closed" in html
    assert "characters left out" in html
    assert len(html) < 150_000


def test_unlike_reports_are_refused():
    with pytest.raises(DriftError):
        render_page([report(), dataclasses.replace(report(), versions={"tokens": 99})])


@pytest.mark.parametrize("package", ["matplotlib", "latex2mathml.converter"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"tightfit\[drift\]"):
        render_page([report()])


def test_short_names():
    def short(*names):
        return short_names([report(name=name) for name in names])

    assert short("model.gguf") == ("Artifact",)
    assert short("r1-Q4_K_M.gguf", "r1-Q4_K_S.gguf") == ("Q4_K_M", "Q4_K_S")
    assert short("r1-Q8_0.gguf", "r1-Q4_0.gguf") == ("Q8_0", "Q4_0")
    assert short("a.gguf", "b.onnx") == ("a.gguf", "b.onnx")
    assert short("a.gguf", "a.gguf") == ("a.gguf (1)", "a.gguf (2)")
    assert short("r1.gguf", "r1-Q4.gguf") == ("r1", "r1-Q4")


def test_write_page(tmp_path):
    write_page(tmp_path / "drift.html", [report()])
    assert (tmp_path / "drift.html").read_text(encoding="utf-8") == render_page([report()])
