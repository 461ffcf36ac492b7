"""How often the gate is wrong and how much data it needs, written into `docs/drift.md`.

    python -m benchmarks gate

False pass: the true drop, or the true KL, is exactly at its limit, and the gate passes. False fail:
both are exactly at their limits, and it fails. Short of the limit or beyond it the rates are
smaller.
"""

import math
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import gammaln

from benchmarks.gate_simulation import (
    AVAILABLE,
    LIMITS,
    MARGIN,
    accuracies,
    drifts,
    fixed_rates,
    sequential_rates,
    single_answers,
)
from tightfit.drift.statistics.intervals import (
    SINGLE,
    STATED_ERROR,
    Levels,
    normal_z,
    tango_statistic,
)
from tightfit.drift.statistics.needed import single_size

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "drift.md"
BEGIN, END = "<!-- gate-rates -->", "<!-- /gate-rates -->"
NOMINAL: Final = Levels(lower=STATED_ERROR, upper=STATED_ERROR)
EXACT_SIZES: Final = (16, 21, 32, 45, 52, 60, 63, 94, 100, 133, 156, 200, 234, 268, 311, 466, 500)
"""Those that a search through every size found to be the worst, and round ones."""
WON: Final = (0, 0.0008, 0.0012, 0.0018, 0.0025, 0.004, 0.006, 0.01, 0.02, 0.03, 0.05, 0.075, 0.15)
"""Shares of problems that the artifact alone solves; it loses as many and the limit."""
RUNS: Final = 4000
REPEATED_RUNS: Final = 1500
"""Data sets of several answers: each is compared on its own, which takes milliseconds."""
POWER_RUNS: Final = 1000
"""Large samples have thousands of different results, each compared on its own."""
POWER_CASES: Final = (
    (0.0, 0.0),
    (0.01, 0.0),
    (0.02, 0.0),
    (0.05, 0.0),
    (0.1, 0.0),
    (0.06, 0.05),
    (0.12, 0.1),
    (0.35, 0.3),
)
"""Shares of problems that are lost or won, and the true drop."""
SEED: Final = 20
TAIL_SDS: Final = 9
"""Standard deviations beyond which a table's probability is below 1e-16."""


def worst_errors(n: int, margin: float, levels: Levels) -> tuple[float, float]:
    """Largest exact false pass and false fail rate over `WON`, one answer a problem.

    The sum of the probabilities of all tables (b lost, c won) that pass, or fail, when the true
    drop is the margin.
    """
    expected = n * (max(WON) + margin)
    most = min(n, math.ceil(expected + TAIL_SDS * math.sqrt(expected)) + 1)
    tables = [(b, c) for b in range(most + 1) for c in range(min(most, n - b) + 1)]
    z = np.array([tango_statistic(b, c, n, margin) for b, c in tables])
    b, c = np.array(tables).T
    rest = n - b - c
    log_ways = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    passed, failed = z < -normal_z(levels.upper), z > normal_z(levels.lower)
    errors = []
    for won in WON:
        lost = won + margin
        won_part = c * math.log(won) if won else np.where(c > 0, -np.inf, 0.0)
        chance = np.exp(log_ways + b * math.log(lost) + won_part + rest * math.log(1 - lost - won))
        errors.append((float(chance[passed].sum()), float(chance[failed].sum())))
    false_pass, false_fail = np.max(errors, axis=0)
    return float(false_pass), float(false_fail)


def exact_table() -> str:
    """Worst rates of the accuracy figure alone, by enumeration."""
    rows = []
    for points in (1, 2, 5):
        for name, levels in ((f"nominal {STATED_ERROR:.0%}", NOMINAL), ("as used", SINGLE)):
            errors = np.array([worst_errors(n, points / 100, levels) for n in EXACT_SIZES])
            limit = f"{points} point{'s' if points > 1 else ''}"
            rows.append([limit, name, *(f"{each:.2%}" for each in errors.max(axis=0))])
    return _table(["limit", "Tango's interval", "worst false pass", "worst false fail"], rows)


def fixed_table(rng: np.random.Generator) -> str:
    """False pass rates of the accuracy figure, false fail rates of both, on samples of fixed size.

    Rows: answers a problem, problems, discordance, KL traces and their spread.
    """
    rows = []
    for samples, runs in ((1, RUNS), (4, REPEATED_RUNS)):
        for n, discordant, traces, sigma in (
            (64, 0.05, 16, 0.5),
            (200, 0.05, 32, 1.0),
            (500, 0.03, 64, 1.5),
            (500, 0.15, 64, 1.0),
        ):
            false_pass = fixed_rates(accuracies(n, samples, discordant, MARGIN, runs, rng), None)
            both = fixed_rates(
                accuracies(n, samples, discordant, MARGIN, runs, rng),
                drifts(traces, sigma, LIMITS.max_kl_nats, runs, rng),
            )
            rows.append(
                [str(samples), str(n), f"{discordant:.0%}", f"{traces}, sigma {sigma:g}"]
                + [_rate(each, runs) for each in (false_pass.passed, both.passed, both.failed)]
            )
    header = ["answers", "problems", "discordant", "KL traces", "false pass, KL within"]
    return _table([*header, "false pass, both at limit", "false fail, both at limit"], rows)


def kl_table(rng: np.random.Generator) -> str:
    """Rates of the KL figure at its limit, the accuracy surely within."""
    rows = []
    for traces in (8, 16, 32, 64):
        for sigma in (0.5, 1.0, 1.5):
            drift = drifts(traces, sigma, LIMITS.max_kl_nats, RUNS, rng)
            rates = fixed_rates(iter([single_answers(0, 0, AVAILABLE)] * RUNS), drift)
            rows.append([str(traces), f"{sigma:g}"])
            rows[-1] += [_rate(each, RUNS) for each in (rates.passed, rates.failed)]
    return _table(["traces", "sigma", "false pass", "false fail"], rows)


def sequential_table(rng: np.random.Generator) -> str:
    """Rates of the sequential gate that looks after each problem, the true drop at the limit."""
    rows = []
    for samples in (1, 4):
        for discordant in (MARGIN, 0.03, 0.05, 0.1, 0.2):
            rates, _ = sequential_rates(discordant, MARGIN, RUNS, rng, samples=samples)
            rows.append([str(samples), f"{discordant:.0%}"])
            rows[-1] += [_rate(each, RUNS) for each in (rates.passed, rates.failed)]
    return _table(["answers", "discordant", "false pass", "false fail"], rows)


def power_table(rng: np.random.Generator) -> str:
    """Problems needed for 80 % power, what they give, and what the sequential gate takes."""
    rows = []
    for discordant, drop in POWER_CASES:
        lost, won = (discordant + drop) / 2, (discordant - drop) / 2
        n = single_size(lost, won, MARGIN, SINGLE)
        assert n is not None
        fixed = fixed_rates(accuracies(n, 1, discordant, drop, POWER_RUNS, rng), None)
        sequential, sizes = sequential_rates(discordant, drop, POWER_RUNS, rng)
        passes = drop < MARGIN
        decided = [each.passed if passes else each.failed for each in (fixed, sequential)]
        rows.append(
            [
                f"{100 * drop:g} points",
                f"{discordant:.0%}",
                "pass" if passes else "fail",
                str(n),
                *(f"{each:.0%}" for each in decided),
                f"{np.median(sizes):.0f}",
            ]
        )
    header = ["true drop", "discordant", "should", "problems needed", "decided with them"]
    return _table([*header, f"sequential: decided by {AVAILABLE}", "its median size"], rows)


def gate_section() -> str:
    """All tables."""
    rng = np.random.default_rng(SEED)
    return f"""\
Written by `python -m benchmarks gate`. The limits are {LIMITS.max_drop_points:g} points and
{LIMITS.max_kl_nats:g} nats. The gate states: a figure at its limit or beyond passes in at most
{STATED_ERROR:.0%} of the cases; two figures within their limits fail in at most
{2 * STATED_ERROR:.0%}, {STATED_ERROR:.0%} for each. +- is one standard error of the simulation.

The accuracy figure alone, one answer a problem: exact, by enumeration of all results. The worst of
{len(EXACT_SIZES)} sizes from {EXACT_SIZES[0]} to {EXACT_SIZES[-1]} problems and {len(WON)} shares \
of problems won. The nominal interval does
not hold its level; the levels in use do.

{exact_table()}
The whole gate on samples of fixed size, {RUNS} data sets a row ({REPEATED_RUNS} with several \
answers):

{fixed_table(rng)}
The KL figure at its limit, accuracy surely within. `sigma` is the standard deviation of the
logarithm of the traces' mean KL, which grows with their length:

{kl_table(rng)}
`--sequential` with {AVAILABLE} problems, looking after every one, the true drop at the limit:

{sequential_table(rng)}
What it takes to decide, one answer a problem:

{power_table(rng)}"""


def write_gate_rates() -> None:
    """Write the tables between the markers of `docs/drift.md`."""
    # Computed before the document is read: it takes a minute, in which one may edit it.
    section = gate_section()
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{section}{END}{after}", encoding="utf-8")


def _rate(share: float, runs: int) -> str:
    error = math.sqrt(max(share * (1 - share), 1 / runs) / runs)
    return f"{share:.1%} +- {100 * error:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["--:"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    write_gate_rates()
