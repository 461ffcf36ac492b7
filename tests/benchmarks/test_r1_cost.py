"""The worked-out times of R1 in `docs/scale.md`."""

import pytest

from benchmarks import r1_cost
from benchmarks.process_tree import Cost
from benchmarks.r1_cost import PARTS, Machine, calibrated, gpu_seconds, rounded, widest_run
from benchmarks.r1_units import Units, measure_units
from benchmarks.r1_work import CalibratedWork, Work
from benchmarks.scale import DOCUMENT, Case, Needs, Run

UNITS = Units(load_s_per_billion=10.0, prove_s_per_billion=20.0, sha256_s_per_gb=0.5)
MACHINE = Machine(title="two", n_gpus=2, bandwidth_bytes_s=1e12)


def test_the_document_holds_the_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in PARTS.items():
        assert f"<!-- {name} -->\n{table()}<!-- /{name} -->" in text, (
            "run `python -m benchmarks.r1_cost`"
        )


def test_seconds_of_a_gpu_by_hand() -> None:
    assert gpu_seconds(Work(flops=11.7e12), MACHINE, UNITS) == pytest.approx(1)
    slow_to_start = Work(operations=1e6, traffic_bytes=0.6e12)
    assert gpu_seconds(slow_to_start, MACHINE, UNITS) == pytest.approx(8)
    slow_to_move = Work(operations=1, traffic_bytes=6e12)
    assert gpu_seconds(slow_to_move, MACHINE, UNITS) == pytest.approx(10)
    on_the_host = Work(copied_bytes=16e9, loaded_weights=1e9)
    assert gpu_seconds(on_the_host, MACHINE, UNITS) == pytest.approx(12)


def test_who_waits_for_whom() -> None:
    def seconds(amount: float) -> Work:
        return Work(flops=amount * 11.7e12)

    work = CalibratedWork(passing=seconds(10), trunks=seconds(4), experts=seconds(20))
    assert calibrated(work, MACHINE, UNITS, from_original=False).quantizing_s == pytest.approx(24)
    assert calibrated(work, MACHINE, UNITS, from_original=True).quantizing_s == pytest.approx(17)
    many = Machine(title="many", n_gpus=20, bandwidth_bytes_s=1e12)
    assert calibrated(work, many, UNITS, from_original=True).quantizing_s == pytest.approx(10)


def test_rounding_without_the_proof_is_spread_over_the_cores() -> None:
    run = _run("rtn", hidden=1024, n_weights=10**9, cpu_s=140.0)
    estimate = rounded(run, MACHINE, UNITS)
    assert estimate.quantizing_s == pytest.approx(120 * 671.0264192 / 24)
    assert estimate.proving_s == pytest.approx(20 * 671.0264192)
    hours = (estimate.quantizing_s + estimate.files_s + estimate.proving_s) / 3600
    assert estimate.dollars == pytest.approx(hours * 2 * r1_cost.DOLLARS_PER_GPU_HOUR)


def test_the_run_most_like_r1() -> None:
    runs = [
        _run("rtn", hidden=512, n_weights=9, cpu_s=1),
        _run("rtn", hidden=1024, n_weights=2, cpu_s=1),
        _run("rtn", hidden=1024, n_weights=3, cpu_s=1),
        _run("gptq", hidden=2048, n_weights=9, cpu_s=1),
    ]
    assert widest_run(runs, "rtn") is runs[2]
    assert widest_run(runs[:3], "gptq") is None


def test_units_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import r1_units

    monkeypatch.setattr(r1_units, "ROWS", 128)
    monkeypatch.setattr(r1_units, "COLUMNS", 256)
    units = measure_units()
    assert units.load_s_per_billion > 0
    assert units.prove_s_per_billion > 0


def _run(method: str, *, hidden: int, n_weights: int, cpu_s: float) -> Run:
    return Run(
        case=Case(method=method, n_layers=4, n_experts=8, hidden=hidden),
        n_weights=n_weights,
        checkpoint_bytes=1,
        output_bytes=1,
        predicted=Needs(peak_memory_bytes=1, scratch_bytes=1, output_bytes=1),
        cost=Cost(
            wall_s=1,
            cpu_s=cpu_s,
            process_bytes=1,
            tree_bytes=1,
            tree_rss_bytes=1,
            high_water_bytes=1,
            disk_bytes=1,
        ),
    )
