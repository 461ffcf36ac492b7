"""The page as a browser shows it: headless Chromium loads it from loopback, unchanged, in a frame
as wide as a phone; the frame's parent, a page of this test, measures it."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.drift_reports import report

from tightfit.drift.gate import Outcome
from tightfit.drift.page.render import render_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is in PATH"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)
TIME_LIMIT_S = 120
HOSTILE = (
    "<script>window.attacked = 1; top.attacked = 1</script>"
    "<img src='/stolen.png' onerror='top.attacked = 1'><style>@import url(/stolen.css)</style>"
)
FRAMES = """<!doctype html><link rel="icon" href="data:,">
<iframe id="phone" src="/page.html" style="width:360px;height:900px;border:0"></iframe>
<iframe id="desktop" src="/page.html" style="width:1200px;height:900px;border:0"></iframe>
<pre id="measured"></pre>
<script>
function measure(id) {
  const page = document.getElementById(id).contentDocument;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const charts = [...page.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll("text")];
    const sizes = texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
    const inside = texts.every(text => {
      const own = text.getBoundingClientRect();
      return own.left >= box.left - 1 && own.right <= box.right + 1;
    });
    return {width: box.width, height: box.height, font_px: Math.min(...sizes), inside};
  });
  const strokes = [...page.querySelectorAll("figure svg path")].map(
    path => getComputedStyle(path).stroke);
  return {
    width: page.documentElement.clientWidth, content: page.documentElement.scrollWidth, charts,
    series: getComputedStyle(page.documentElement).getPropertyValue("--series-0").trim(),
    strokes: [...new Set(strokes)],
    math: page.querySelectorAll("math").length,
    math_height: Math.min(...[...page.querySelectorAll("math")].map(
      math => math.getBoundingClientRect().height)),
    active: page.querySelectorAll("script, img, iframe, object, a, form").length,
    text: page.body.textContent,
  };
}
onload = () => {
  const found = {phone: measure("phone"), desktop: measure("desktop"),
                 attacked: window.attacked ?? null};
  document.getElementById("measured").textContent = JSON.stringify(found);
};
</script>"""


def reports():
    flip = report().flips[0]
    wide = "\\[" + " + ".join(f"x_{{{index}}}^2" for index in range(60)) + "\\]" + "w" * 500
    flips = (
        flip,
        dataclasses.replace(
            flip,
            unique_id=HOSTILE,
            problem=HOSTILE,
            gold=r"\text{" + HOSTILE + "}",
            baseline_text=f"{wide}</think>{wide}",
            artifact_text=f"{HOSTILE} $\\text{{{HOSTILE}}}$</think>{HOSTILE}",
        ),
    )
    names = ("DeepSeek-R1-Distill-Qwen-7B-Q8_0.gguf", "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf")
    return [
        dataclasses.replace(report(Outcome.INCONCLUSIVE, name=name, kl=kl), flips=flips)
        for name, kl in zip(names, (0.0004, 0.02), strict=True)
    ]


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def seen(request, tmp_path_factory):
    """What was measured, and the paths that were asked for."""
    page = render_page(reports()[: request.param]).encode()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            served = {"/page.html": page, "/frames.html": FRAMES.encode()}.get(self.path)
            self.send_response(404 if served is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(served or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = tmp_path_factory.mktemp("profile")
        done = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/frames.html",
            ],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
        server.shutdown()
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), asked


@pytest.mark.parametrize(("frame", "width_px"), [("phone", 360), ("desktop", 1200)])
def test_nothing_is_wider_than_the_screen(seen, frame, width_px):
    measured, _ = seen
    assert width_px - 20 <= measured[frame]["width"] <= width_px  # a scroll bar may take some
    assert measured[frame]["content"] == measured[frame]["width"]


@pytest.mark.parametrize("frame", ["phone", "desktop"])
def test_charts_have_a_size_and_legible_text(seen, frame):
    measured, _ = seen
    assert len(measured[frame]["charts"]) == 4
    for chart in measured[frame]["charts"]:
        assert 280 <= chart["width"] <= 480
        assert chart["height"] >= 90
        assert 10 <= chart["font_px"] <= 17
        assert chart["inside"]


def test_colours_of_charts_come_from_the_style_sheet(seen):
    measured, _ = seen
    hexadecimal = measured["phone"]["series"].removeprefix("#")
    channels = [int(hexadecimal[start : start + 2], 16) for start in (0, 2, 4)]
    assert "rgb({}, {}, {})".format(*channels) in measured["phone"]["strokes"]


def test_formulas_are_drawn(seen):
    measured, _ = seen
    assert measured["phone"]["math"] >= 8
    assert measured["phone"]["math_height"] > 5


def test_page_asks_for_nothing(seen):
    _, asked = seen
    assert sorted(asked) == ["/frames.html", "/page.html", "/page.html"]


def test_what_models_write_stays_text(seen):
    measured, _ = seen
    assert measured["attacked"] is None
    assert measured["phone"]["active"] == 0
    assert measured["phone"]["text"].count(HOSTILE) >= 4
