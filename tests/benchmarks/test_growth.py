"""The growth: what is measured, how it is fitted, and what is written of it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.conversion.checkpoints import Llama
from benchmarks.growth import run as growth_run
from benchmarks.growth.fit import exponent, line
from benchmarks.growth.plot import draw, short
from benchmarks.growth.report import growth_sections
from benchmarks.growth.results import Results, Run, growth
from benchmarks.growth.run import export, plot_name, run_series, write_growth
from benchmarks.growth.series import FULL, SMALL, Point, Series, Text
from benchmarks.process_tree import Cost
from tightfit.export.manifest import MANIFEST_NAME

COST = Cost(
    wall_s=10.0,
    cpu_s=16.0,
    process_bytes=400_000_000,
    tree_bytes=500_000_000,
    tree_rss_bytes=600_000_000,
    high_water_bytes=450_000_000,
    disk_bytes=70_000_000,
)


def _runs(name: str, seconds_each: float) -> tuple[Run, ...]:
    """Runs of the full series whose time is a start-up of 6 s and a constant for each amount."""
    return tuple(
        Run(
            series=name,
            point=point,
            cost=replace(COST, cpu_s=6 + seconds_each * point.amount, wall_s=float(point.amount)),
        )
        for point in FULL[name].points
    )


RESULTS = Results(
    machine={"cores": 2, "cpu": "a CPU", "packages": {}}, runs=_runs("layers", 2.0)[::-1]
)


def test_the_series_are_those_of_the_issue() -> None:
    amounts = {name: [point.amount for point in of.points] for name, of in FULL.items()}
    billions = [amount / 1e9 for amount in amounts["weights"]]
    assert billions == pytest.approx([0.1, 0.3, 1.0, 3.0], rel=0.05)
    assert amounts["layers"] == [4, 8, 16, 32]
    assert amounts["tokens"] == [2048, 8192, 32768, 65536]


@pytest.mark.parametrize("series", [FULL, SMALL])
def test_only_one_size_grows(series: Mapping[str, Series]) -> None:
    for point in series["weights"].points:
        assert (point.text, point.model.count()) == (None, point.amount)
    assert len({point.text for point in series["layers"].points}) == 1
    assert len({replace(point.model, n_layers=0) for point in series["layers"].points}) == 1
    assert len({point.model for point in series["tokens"].points}) == 1
    for point in series["tokens"].points:
        assert point.text is not None
        assert point.text.n_sequences * point.text.length_tokens == point.amount


def test_an_exponent_is_found() -> None:
    assert exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
    # By hand, in powers of ten: (-1 * 0 + 0 * 1 + 1 * 3) / (1 + 0 + 1).
    assert exponent([1, 10, 100], [1, 10, 1000]) == pytest.approx(1.5)


def test_a_line_is_found_by_relative_distances() -> None:
    found = line([1e9, 2e9, 8e9], [7.0, 9.0, 21.0])
    assert (found.start, found.slope) == pytest.approx((5.0, 2e-9))
    assert found.worst == pytest.approx(0, abs=1e-12)
    # By hand: (c - 1)^2 + (c / 2 - 1)^2 is least at 1.2.
    assert line([1.0, 1.0], [1.0, 2.0]).worst == pytest.approx(0.4)


def test_growth_of_runs_in_any_order() -> None:
    grown = growth(RESULTS.series("layers"))
    assert grown is not None
    assert grown.wall_exponent == pytest.approx(1)
    assert grown.cpu_exponent < grown.last_cpu_exponent < 1
    assert (grown.cpu_line.start, grown.cpu_line.slope) == pytest.approx((6, 2))
    assert (grown.rss_ratio, grown.anonymous_ratio) == (1, 1)
    assert growth(RESULTS.series("layers")[:1]) is None


def test_results_come_back_and_tell_the_growth(tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    results = replace(RESULTS, runs=RESULTS.runs + _runs("weights", 1e-8)[:1])
    results.write(file)
    assert Results.read(file) == results
    written = json.loads(file.read_text())["growth"]
    assert list(written) == ["layers"]
    assert written["layers"]["cpu_line"]["slope"] == pytest.approx(2)


def test_an_interrupted_series_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Title\n")
    monkeypatch.setattr(growth_run, "DOCS", tmp_path)
    monkeypatch.setattr(growth_run, "DOCUMENT", document)
    monkeypatch.setattr(growth_run, "RESULTS", tmp_path / "growth.json")
    done: list[Point] = []

    def stop_at_the_third(point: Point, folder: Path) -> Cost:
        assert folder.is_dir()
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(point)
        return COST

    def count(point: Point, folder: Path) -> Cost:
        done.append(point)
        return COST

    layers = {"layers": FULL["layers"]}
    monkeypatch.setattr(growth_run, "export", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_growth(layers)
    monkeypatch.setattr(growth_run, "export", count)
    write_growth(layers)
    assert tuple(done) == FULL["layers"].points
    write_growth(layers, again=True)
    assert tuple(done) == FULL["layers"].points * 2
    assert document.read_text().count("### Layers, GPTQ") == 1
    assert (tmp_path / "growth-layers.svg").exists()


def test_the_document_has_a_row_a_point_and_the_growth() -> None:
    text = growth_sections(FULL, RESULTS, plot_name)
    assert "| 32 | 32.0 | 70.0 | 600 | 500 | 70 |" in text.splitlines()
    assert "CPU s = 6.0 + 2 for each of layers, within 0 %." in text
    assert "Peak memory, last over first: 1.00" in text
    assert "(growth-layers.svg)" in text
    assert "### Weights" not in text


def test_a_plot_is_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw(FULL["layers"], RESULTS.series("layers"), tmp_path / folder / "plot.svg")
    first, second = ((tmp_path / folder / "plot.svg").read_bytes() for folder in ("a", "b"))
    assert first == second
    assert b"<svg" in first


def test_ticks_are_short() -> None:
    ticks = {name: [short(point.amount) for point in of.points] for name, of in FULL.items()}
    assert ticks["weights"] == ["0.1B", "0.3B", "1.0B", "3.0B"]
    assert ticks["layers"] == ["4", "8", "16", "32"]
    assert ticks["tokens"] == ["2k", "8k", "32k", "64k"]


TINY = Llama(hidden=256, intermediate=512, n_layers=1, n_heads=4, n_kv_heads=2, vocab=512)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_is_measured(tmp_path: Path) -> None:
    point = Point(amount=TINY.count(), model=TINY, text=None)
    tiny = Series(title="tiny", what="", unit="weights", points=(point,))
    (results,) = run_series({"weights": tiny}, replace(RESULTS, runs=()))
    (run,) = results.runs
    assert run.cost.cpu_s > 0
    assert run.cost.tree_rss_bytes > run.cost.tree_bytes > 0
    assert list(run_series({"weights": tiny}, results)) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_as_many_tokens_as_asked_for_are_used(tmp_path: Path) -> None:
    text = Text(n_sequences=3, length_tokens=50)
    export(Point(amount=150, model=TINY, text=text), tmp_path)
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert manifest["calibration"]["tokens"] == 150
