"""The whole gate on simulated data, whose true drop and true KL are known.

Correctness, one answer a problem: lost and won with fixed probabilities. Several answers: problems
of a Beta distribution of difficulty that both models share, some of which the artifact never
solves.
KL: traces whose means are lognormal, and whose lengths are lognormal and grow with it.

Shape legend: R data sets, N problems or traces.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.gate import GateDecision, Limits, Outcome, SequentialStop, decide
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.drift.statistics.intervals import STATED_ERROR, normal_z
from tightfit.drift.statistics.mean import mean_intervals
from tightfit.drift.statistics.paired import PairedAccuracy, compare_paired
from tightfit.drift.statistics.sequential import ALPHA, log_evidence, log_growth

Floats = NDArray[np.float64]
Judge = Callable[..., GateDecision]

LIMITS: Final = Limits()
MARGIN: Final = LIMITS.max_drop_points / 100
AVAILABLE: Final = 500
"""Problems of MATH-500, where a sequential test ends undecided."""
CHUNK: Final = 250
"""Data sets at once: some hundred MiB."""
MEAN_LENGTH_TOKENS: Final = 800.0
LENGTH_SIGMA: Final = 0.5
LENGTH_CORRELATION: Final = 0.5
"""Of the logarithms of a trace's KL and length: positive is the harder case."""
BETA: Final = (3.0, 0.6)
"""Difficulty of the problems: most are solved nearly always, some hardly."""
SOLVED: Final = 0.8
"""Share of answers that solve an unchanged problem, in sequential runs of several answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Shares of data sets."""

    passed: float
    failed: float


@cache
def single_answers(b: int, c: int, n: int) -> PairedAccuracy:
    """Compare on n problems with one answer each: b lost, c won, the rest solved by both."""
    rest = n - b - c
    baseline, artifact = [1.0] * b + [0.0] * c, [0.0] * b + [1.0] * c
    return compare_paired(baseline + [1.0] * rest, artifact + [1.0] * rest, samples=1)


def accuracies(
    n: int, samples: int, discordant: float, drop: float, runs: int, rng: np.random.Generator
) -> Iterator[PairedAccuracy]:
    """Simulated comparisons. `discordant` is the share of problems that are lost or won."""
    if samples == 1:
        lost, won = (discordant + drop) / 2, (discordant - drop) / 2
        for b, c, _ in rng.multinomial(n, (lost, won, 1 - lost - won), size=runs):
            yield single_answers(int(b), int(c), n)
        return
    share = BETA[0] / sum(BETA)
    for _ in range(runs):
        kept_N = rng.beta(*BETA, size=n)
        redrawn_N = rng.random(n) < discordant
        changed_N = np.where(redrawn_N, rng.beta(*BETA, size=n), kept_N)
        changed_N = changed_N * (rng.random(n) >= drop / share)
        baseline_N, artifact_N = rng.binomial(samples, (kept_N, changed_N)) / samples
        yield compare_paired(baseline_N.tolist(), artifact_N.tolist(), samples=samples)


def drifts(
    n: int, sigma: float, kl_nats: float, runs: int, rng: np.random.Generator
) -> Iterator[TokenDrift]:
    """Simulated drifts over n traces whose true mean KL is `kl_nats`."""
    covariance = LENGTH_CORRELATION * sigma * LENGTH_SIGMA
    scale = kl_nats / math.exp(sigma**2 / 2 + covariance)
    for start in range(0, runs, CHUNK):
        normal_RN, other_RN = rng.standard_normal((2, min(CHUNK, runs - start), n))
        own = math.sqrt(1 - LENGTH_CORRELATION**2)
        log_length_RN = LENGTH_SIGMA * (LENGTH_CORRELATION * normal_RN + own * other_RN)
        counts_RN = np.ceil(MEAN_LENGTH_TOKENS * np.exp(log_length_RN))
        sums_RN = scale * np.exp(sigma * normal_RN) * counts_RN
        ends = mean_intervals(sums_RN, counts_RN, seed=start)
        means_R = sums_RN.sum(axis=1) / counts_RN.sum(axis=1)
        for mean, lower, upper in zip(means_R, *ends, strict=True):
            yield _drift(n, float(mean), (float(lower), float(upper)))


def _drift(n: int, mean: float, interval: tuple[float, float]) -> TokenDrift:
    """A drift of which the gate reads the mean KL; the rest is not simulated."""
    return TokenDrift(
        n_samples=n,
        n_tokens=n,
        kl_mean_nats=mean,
        kl_mean_stderr_nats=(interval[1] - interval[0]) / (2 * normal_z(STATED_ERROR)),
        kl_interval_nats=interval,
        kl_median_nats=mean,
        kl_p90_nats=mean,
        kl_p99_nats=mean,
        kl_p999_nats=mean,
        kl_max_nats=mean,
        confident=None,
        top1_agreement=1.0,
        top1_agreement_stderr=None,
        baseline_perplexity=1.0,
        artifact_perplexity=1.0,
        tail_mass=0.0,
        by_position=(),
        by_kl=(),
    )


SMALL_DRIFT: Final = _drift(64, 0.0, (0.0, 0.0))
"""Surely within the limit, so that the accuracy decides."""


def fixed_rates(
    compared: Iterator[PairedAccuracy], measured: Iterator[TokenDrift] | None, judge: Judge = decide
) -> Rates:
    """Outcomes of the gate on a sample of fixed size; `measured` None leaves KL out of doubt."""
    outcomes = [
        judge(accuracy, SMALL_DRIFT if measured is None else next(measured), LIMITS).outcome
        for accuracy in compared
    ]
    return _rates(outcomes)


def sequential_rates(
    discordant: float, drop: float, runs: int, rng: np.random.Generator, *, samples: int = 1
) -> tuple[Rates, Floats]:
    """Outcomes of the sequential gate that looks after every problem, and problems it took (R,)."""
    # The gate shows the accuracy of a sequential run and decides on the evidence alone.
    shown = single_answers(0, 0, AVAILABLE)
    outcomes, sizes = [], []
    for start in range(0, runs, CHUNK):
        differences_RN = differences(discordant, drop, min(CHUNK, runs - start), samples, rng)
        for stop in sequential_stops(differences_RN):
            outcomes.append(decide(shown, SMALL_DRIFT, LIMITS, sequential=stop).outcome)
            sizes.append(stop.looked_at)
    return _rates(outcomes), np.array(sizes, np.float64)


def differences(
    discordant: float, drop: float, runs: int, samples: int, rng: np.random.Generator
) -> Floats:
    """Simulated differences of scores (R, N).

    One answer: lost, won or equal. Several: a changed problem goes from always to never or back,
    and an unchanged one is solved by both in a share of the answers.
    """
    lost, won = (discordant + drop) / 2, (discordant - drop) / 2
    u_RN = rng.random((runs, AVAILABLE))
    changed_RN = (u_RN < lost).astype(np.float64) - (u_RN >= 1 - won)
    if samples == 1:
        return changed_RN
    kept_RN, again_RN = rng.binomial(samples, SOLVED, size=(2, runs, AVAILABLE)) / samples
    return np.where(changed_RN == 0, kept_RN - again_RN, changed_RN)


def sequential_stops(differences_RN: Floats) -> Iterator[SequentialStop]:
    """Where each data set stops: `SequentialTest` on many at once."""
    log_stakes = log_growth(differences_RN, MARGIN).cumsum(axis=1)
    evidence_RNP = np.exp(log_evidence(log_stakes))
    available = differences_RN.shape[1]
    for evidence_NP in evidence_RNP:
        decided_N = (evidence_NP >= 1 / ALPHA).any(axis=1)
        looked_at = int(decided_N.argmax()) + 1 if decided_N.any() else available
        pass_evidence, fail_evidence = evidence_NP[looked_at - 1].tolist()
        yield SequentialStop(
            looked_at=looked_at,
            available=available,
            pass_evidence=pass_evidence,
            fail_evidence=fail_evidence,
            threshold=1 / ALPHA,
        )


def _rates(outcomes: list[Outcome]) -> Rates:
    return Rates(
        passed=outcomes.count(Outcome.PASS) / len(outcomes),
        failed=outcomes.count(Outcome.FAIL) / len(outcomes),
    )
