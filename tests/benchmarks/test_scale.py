"""The sweep over sizes: what is run, and what is written of it."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.process_tree import Cost
from benchmarks.scale import FULL, QUICK, Case, Needs, Run, read_runs, run_case, scale_sections

CASE = Case(method="rtn", n_layers=4, n_experts=64, hidden=1024)
RUN = Run(
    case=CASE,
    n_weights=1_500_000_000,
    checkpoint_bytes=1_600_000_000,
    output_bytes=900_000_000,
    predicted=Needs(peak_memory_bytes=700_000_000, scratch_bytes=910_000_000, output_bytes=1),
    cost=Cost(
        wall_s=30.4,
        cpu_s=45.0,
        process_bytes=650_000_000,
        tree_bytes=1_300_000_000,
        tree_rss_bytes=2_500_000_000,
        high_water_bytes=1_250_000_000,
        disk_bytes=905_000_000,
    ),
)
ROW = "| 1024 | 4 | 64 | 1.50 | 0.70 | 0.65 | 1.30 | 2.50 | 30 | 30 | 0.91 | 0.91 | 0.90 |"


def test_the_sweep_has_the_sizes_of_the_issue_once_each() -> None:
    sizes = [(case.n_layers, case.n_experts) for case in FULL.cases("rtn", 2048)]
    assert sorted(sizes) == [(4, 8), (4, 64), (4, 256), (8, 64), (16, 64)]


def test_a_run_stands_in_the_table_of_layers_and_in_that_of_experts() -> None:
    lines = scale_sections(FULL, [RUN]).splitlines()
    assert lines.count(ROW) == 2
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {ROW.count("|")}
    assert "--calib none --method rtn" in "".join(lines)
    assert scale_sections(FULL, []) == ""


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "scale.md"
    document.write_text("before\n<!-- measured -->\n<!-- /measured -->\nafter\n")
    monkeypatch.setattr(scale, "DOCUMENT", document)
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "scale.json")
    done: list[Case] = []

    def stop_after_two(case: Case, work: Path) -> Run:
        assert work.is_dir()
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case)
        return replace(RUN, case=case)

    monkeypatch.setattr(scale, "run_case", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        scale.write_scale(["rtn"])
    assert [run.case for run in read_runs(tmp_path / "scale.json")] == done

    monkeypatch.setattr(scale, "run_case", lambda case, work: replace(RUN, case=case))
    scale.write_scale(["rtn"], missing=True)
    runs = read_runs(tmp_path / "scale.json")
    assert [run.case for run in runs] == FULL.cases("rtn", scale.HIDDEN["rtn"])
    assert json.loads((tmp_path / "scale.json").read_text())[0] == asdict(runs[0])
    assert ROW in document.read_text()
    assert document.read_text().endswith("<!-- /measured -->\nafter\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_is_measured(tmp_path: Path) -> None:
    case = QUICK.cases("gptq", scale.QUICK_HIDDEN)[0]
    run = run_case(case, tmp_path)
    assert run.checkpoint_bytes > run.n_weights
    assert 0.4 * run.checkpoint_bytes < run.output_bytes < run.checkpoint_bytes
    assert run.predicted.output_bytes == pytest.approx(run.output_bytes, rel=0.05)
    assert 200e6 < run.cost.process_bytes <= run.cost.tree_bytes
    assert run.predicted.peak_memory_bytes == pytest.approx(run.cost.process_bytes, rel=0.15)
    assert run.cost.disk_bytes > 0
