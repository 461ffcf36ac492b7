"""The race: what is run, how it is scored, and what is written of it."""

import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.race import run as race_run
from benchmarks.race.entrants import RACES
from benchmarks.race.limit import forward_flops, gemm_flops_per_s, gptq_flops
from benchmarks.race.measured import save_weights
from benchmarks.race.report import race_sections
from benchmarks.race.results import Results, Run
from benchmarks.race.run import Plan, run_race
from benchmarks.race.scaled import unscaled
from benchmarks.race.score import score
from benchmarks.race.spread import spread
from benchmarks.race.subject import HIDDEN, LENGTH_TOKENS, calibration_ids, make_model
from tightfit.calib.precision import Precision

GIGA = 1e9
SEEN = Run(
    race="gptq",
    entrant="tightfit",
    sequences=16,
    threads=1,
    cpu_s=20.0,
    wall_s=21.0,
    memory_bytes=150_000_000,
    rss_bytes=600_000_000,
    output_error=0.05,
    kl_nats=0.004,
)
RESULTS = Results(
    machine={"cores": 2, "cpu": "a CPU", "packages": {"torch": "2.0"}},
    n_layers=8,
    skipped=("gptqmodel",),
    rates={"1": [70 * GIGA]},
    own_rates={"1": [140 * GIGA]},
    runs=(
        SEEN,
        Run(
            race="gptq",
            entrant="llm-compressor, no act-order",
            sequences=16,
            threads=1,
            cpu_s=40.0,
            wall_s=41.0,
            memory_bytes=300_000_000,
            rss_bytes=900_000_000,
            output_error=0.06,
            kl_nats=0.005,
        ),
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race") / "model"
    make_model(folder, n_layers=1)
    return folder


def test_the_limit_counts_the_operations_that_torch_counts(model: Path) -> None:
    blocks = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").model
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        blocks(calibration_ids(1))
    # torch counts the whole square of scores, of which causal attention needs half.
    square = 2 * LENGTH_TOKENS**2 * HIDDEN
    assert counter.get_total_flops() == pytest.approx(forward_flops(1) + square, rel=1e-3)


def test_the_limit_is_that_of_the_issue() -> None:
    # 66 and 17 CPU s at 70 GFLOP/s, with 5 % for what causal attention saves.
    assert gptq_flops(8, 64) / (70 * GIGA) == pytest.approx(66, rel=0.05)
    assert gptq_flops(8, 16) / (70 * GIGA) == pytest.approx(17, rel=0.05)


def test_the_rate_is_that_of_a_product() -> None:
    assert 0.5 * GIGA < gemm_flops_per_s(1, Precision.HIGHEST) < 1000 * GIGA


def test_scaled_weights_come_back_as_they_were() -> None:
    w_OI = torch.randn(6, 8)
    w_OI[2, 3] = 0
    scaled_OI = w_OI * (torch.rand(6, 1) + 0.5) * (torch.rand(8) + 0.5)
    back = unscaled({"w": scaled_OI * 1.25}, {"w": scaled_OI}, {"w": w_OI})
    torch.testing.assert_close(back["w"], w_OI * 1.25)


def test_the_score_is_the_relative_error(model: Path, tmp_path: Path) -> None:
    stored = load_file(model / "model.safetensors")
    linears = {name: each for name, each in stored.items() if "_proj.weight" in name}
    save_weights(linears, tmp_path)
    same = score(model, tmp_path)
    assert (same.output_error, same.kl_nats) == (0, 0)
    save_weights({name: each * 1.02 for name, each in linears.items()}, tmp_path)
    off = score(model, tmp_path)
    assert off.output_error == pytest.approx(0.02, rel=1e-3)
    assert off.kl_nats > 0


@pytest.mark.parametrize(
    ("label", "races"),
    [
        ("tightfit, `--calibrate-from original`", ["gptq"]),
        pytest.param("tightfit", ["gptq", "awq"], marks=pytest.mark.slow),
    ],
)
def test_a_race_runs_and_is_written(
    label: str, races: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_run, "gemm_flops_per_s", lambda threads, _: 50 * GIGA * threads)
    plan = Plan(rounds=1, threads=(1,), n_layers=1, sequences=(1,), labels=(label,))
    *_, results = run_race(plan)
    assert [run.race for run in results.runs] == races
    for run in results.runs:
        assert 0.02 < run.output_error < 0.15
        assert run.rss_bytes > run.memory_bytes > 1_000_000
        assert run.cpu_s > 0
    results.write(tmp_path / "race.json")
    assert Results.read(tmp_path / "race.json") == results


def test_entrants_run_in_turn_and_a_slow_one_once() -> None:
    entrants = [("gptq", entrant) for entrant in RACES["gptq"].entrants]
    plan = Plan(rounds=2, threads=(1,), sequences=(16, 64))
    turns = list(race_run._turns(plan, entrants))
    labels = [entrant.label for _, entrant, sequences, _, _ in turns if sequences == 16]
    fast = [entrant.label for _, entrant in entrants if not entrant.is_slow]
    slow = [entrant.label for _, entrant in entrants if entrant.is_slow]
    assert labels == [*fast, *slow, *fast]
    assert not {entrant.label for _, entrant, sequences, _, _ in turns if sequences == 64} & {*slow}


def test_a_peer_that_is_not_installed_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_run, "interpreter_of", lambda package: None)
    monkeypatch.setattr(race_run, "machine", lambda packages: RESULTS.machine)
    assert list(run_race(Plan(n_layers=1))) == []
    assert "so not run: gptqmodel." in race_sections(RESULTS)


def test_the_table_has_the_ratios() -> None:
    lines = race_sections(RESULTS).splitlines()
    limit_s = gptq_flops(8, 16) / (70 * GIGA)
    limit = f"| the limit | 1 | {limit_s:.1f} | {limit_s / 20:.2f} | 1.00 | - | - | - | - | - |"
    own = f"{limit_s / 2:.1f} | {limit_s / 40:.2f} | 0.50 | - | - | - | - | - |"
    assert f"| the limit at tightfit's rate | 1 | {own}" in lines
    times = f"1.00 | {20 / limit_s:.2f}"
    ours = f"| tightfit | 1 | 20.0 | {times} | 21.0 | 150 | 600 | 0.0500 | 0.0040 |"
    assert {limit, ours} <= set(lines)
    assert any(
        line.startswith("| llm-compressor, no act-order | 1 | 40.0 | 2.00") for line in lines
    )


def test_a_spread_is_the_median_between_the_extremes() -> None:
    values = [3.0, 1.0, 10.0]
    assert spread(values) == f"{statistics.median(values)} (1.0 to 10.0)"
    assert spread([2.0]) == "2.0"
