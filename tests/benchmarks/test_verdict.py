"""The table of what was asked: ratios by hand from made-up figures."""

from dataclasses import replace

import pytest

from benchmarks.conversion import results as conversion
from benchmarks.race import results as race
from benchmarks.race.limit import GIGA, gptq_flops
from benchmarks.verdict import Row, conversion_rows, race_rows, verdict_table

RUN = race.Run(
    race="gptq",
    entrant="tightfit",
    sequences=16,
    threads=1,
    cpu_s=20.0,
    wall_s=21.0,
    memory_bytes=200,
    rss_bytes=900,
    output_error=0.10,
    kl_nats=0.012,
)
PEERS = (
    replace(RUN, entrant="gptqmodel, group-aware", cpu_s=30.0, memory_bytes=300, kl_nats=0.010),
    replace(RUN, entrant="llm-compressor, no act-order", cpu_s=50.0, output_error=0.125),
)


def race_of(*runs: race.Run) -> race.Results:
    rates, own_rates = ({"1": [rate * GIGA]} for rate in (80, 160))
    return race.Results(
        machine={}, n_layers=8, skipped=(), rates=rates, own_rates=own_rates, runs=runs
    )


def test_a_race_is_held_against_the_best_peer_in_each_figure() -> None:
    results = race_of(RUN, *PEERS)
    rows = {row.what.partition(": ")[2]: row for row in race_rows(results)}
    limit_s = gptq_flops(8, 16) / (80 * GIGA)
    for rate, faster in (("torch's", 1), ("our", 2)):
        times = rows[f"CPU time ÷ computed limit at {rate} rate"].measured
        assert times == pytest.approx(20 / limit_s * faster)
    assert rows["fastest peer ÷ tightfit, CPU time"].measured == pytest.approx(1.5)
    assert not rows["fastest peer ÷ tightfit, CPU time"].is_met
    assert rows["output error ÷ the best peer's"].measured == pytest.approx(1.0)
    assert rows["output error ÷ the best peer's"].is_met
    assert rows["KL ÷ the best peer's"].measured == pytest.approx(1.2)
    assert rows["memory over the baseline ÷ the least peer's"].measured == pytest.approx(1.0)


def test_without_a_peer_there_is_no_ratio() -> None:
    assert list(race_rows(race_of(RUN))) == []


def test_a_conversion_counts_both_programs_of_the_other_way() -> None:
    ours = conversion.Run(
        model="llama",
        scheme="q4_k_m",
        maker=conversion.OURS,
        cpu_s=90.0,
        convert_cpu_s=0.0,
        wall_s=50.0,
        rss_bytes=600_000_000,
        anonymous_bytes=400_000_000,
        scratch_bytes=0,
        file_bytes=700_000_000,
        error=0.0040,
    )
    theirs = replace(ours, maker=conversion.THEIRS, wall_s=90.0, error=0.0050)
    results = conversion.Results(machine={}, skipped=(), n_weights={}, runs=(ours, theirs))
    measured = [(row.measured, row.is_met) for row in conversion_rows(results)]
    assert measured == [(0.6, True), (pytest.approx(1.8), False), (pytest.approx(0.8), True)]


def test_the_table() -> None:
    rows = [Row(what="a", measured=2.5, at_least=2), Row(what="b", measured=1.25, at_most=1)]
    assert verdict_table(rows).splitlines()[2:] == [
        "| a | ≥ 2 | 2.50 | met |",
        "| b | ≤ 1 | 1.25 | **falls short** |",
    ]
