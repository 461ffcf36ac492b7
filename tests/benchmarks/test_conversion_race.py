"""The conversions: what is converted, what the error is, and what is written of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.conversion import run as conversion_run
from benchmarks.conversion.checkpoints import FULL, SMALL, Llama, Model
from benchmarks.conversion.converter import CHECKOUT
from benchmarks.conversion.file_error import sampled_blocks
from benchmarks.conversion.report import conversion_sections
from benchmarks.conversion.results import THEIRS, Results, Run
from benchmarks.conversion.run import Plan, missing, run_conversions
from benchmarks.documents import write_part

TINY = Llama(hidden=256, intermediate=512, n_layers=2, n_heads=4, n_kv_heads=2, vocab=512)
OURS_RUN = Run(
    model="llama",
    scheme="q4_k_m",
    maker="tightfit",
    cpu_s=50.0,
    convert_cpu_s=0.0,
    wall_s=26.0,
    rss_bytes=800_000_000,
    anonymous_bytes=500_000_000,
    scratch_bytes=0,
    file_bytes=700_000_000,
    error=0.004,
)
THEIR_RUN = replace(OURS_RUN, maker=THEIRS, cpu_s=125.0, convert_cpu_s=30.0, wall_s=78.0)
RESULTS = Results(
    machine={"cores": 2, "cpu": "a CPU", "packages": {}},
    skipped=(),
    n_weights={"llama": 1_100_000_000},
    runs=(OURS_RUN, THEIR_RUN),
)


def test_the_models_have_the_sizes_of_real_ones() -> None:
    assert FULL["llama"].n_weights == 1_100_048_384  # TinyLlama-1.1B
    assert 1.3e9 < FULL["deepseek"].n_weights < 1.5e9
    assert all(1e7 < model.n_weights < 4e7 for model in SMALL.values())


def test_ours_alone_where_the_peer_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(CHECKOUT, raising=False)
    tiny = Model(title="tiny", n_weights=TINY.count(), write=TINY.write, schemes=("q8_0",))
    *_, results = run_conversions(Plan(rounds=1, models={"llama": tiny}))
    (run,) = results.runs
    # A Q8_0 of normal weights; a wrong row order or a wrong tensor would make it about 2.
    assert 1e-5 < run.error < 1e-4
    assert run.cpu_s > 0
    assert run.rss_bytes > run.anonymous_bytes > 0
    assert any(CHECKOUT in word for word in results.skipped)
    assert f"Skipped: {results.skipped[0]}" in conversion_sections(results)
    results.write(tmp_path / "conversion.json")
    assert Results.read(tmp_path / "conversion.json") == results


def test_a_folder_without_the_converter_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CHECKOUT, str(tmp_path))
    monkeypatch.setattr(conversion_run, "installed", lambda python: {})
    assert [word.partition(" (")[0] for word in missing()] == [
        "llama.cpp's converter",
        "llama-quantize",
    ]


def test_the_table_has_the_ratios() -> None:
    lines = conversion_sections(RESULTS).splitlines()
    assert "| q4_k_m | 50.0 | 125.0 | 30.0 | 2.50 | 26.0 | 78.0 | 3.00 |" in lines
    cells = "0.80 (0.50) | 0.80 (0.50) | 0.00 | 0.00 | 0.700 | 0.700 | 4.000e-03 | 4.000e-03"
    assert f"| q4_k_m | {cells} |" in lines


def test_the_sample_is_three_blocks() -> None:
    assert sampled_blocks(22) == {0, 11, 21}
    assert sampled_blocks(1) == {0}


def test_a_part_is_added_once_and_replaced_then(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Title\n")
    write_part(document, "race", "one\n")
    write_part(document, "race", "two\n")
    assert document.read_text() == "# Title\n\n<!-- race -->\ntwo\n<!-- /race -->\n"
