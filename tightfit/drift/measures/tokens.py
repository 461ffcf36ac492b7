"""Token-level drift: two models read the same answers, and every position is compared.

Of each position `partition` measures the KL divergence, whether the most probable tokens are the
same, and the likelihood of the token that really follows. Here they are collected and summed up:
mean, percentiles and maximum; the tokens that the baseline is sure of, where a reasoning model
should not waver; along the answer, since errors may build up; and the distribution of the KL.

The tokens of one trace are not independent, so standard errors take the *sample* as the unit. With
S_i the sum over sample i, T_i its tokens and m = sum S / sum T, the ratio estimator's variance
(Cochran, Sampling Techniques, 1977, section 6.4; cluster-robust with n/(n-1)) is

    var(m) = n / (n - 1) * sum_i (S_i - m * T_i)^2 / (sum_i T_i)^2

Shape legend: T tokens (positions), V vocabulary, N samples, C columns.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.measures.partition import Column, measure_rows
from tightfit.drift.statistics.mean import mean_interval
from tightfit.errors import DriftError, RuntimeFailureError
from tightfit.runtimes.base import LogprobRuntime, Runtime
from tightfit.runtimes.logprobs import TokenLogprobs, concatenate, keep_logprobs

CONFIDENT: Final = 0.9
"""Probability of the baseline's first choice from which on it counts as sure: sampling at top-p
0.95 then hardly ever takes another, so that a drift there is the artifact's own."""
KL_FLOOR_POWER: Final = -8
"""Below 1e-8 nats positions are equal: float32 logits resolve no more."""
INTERVAL_SEED: Final = 0
"""Of the resampling in the interval: the same rows give the same interval."""
MAX_NLL: Final = 700.0
"""A perplexity is at most exp of this, nearly the largest float64: JSON has no infinity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Positions that share a range of some quantity, `low` to below `high`; never empty."""

    low: float
    """0 for the lowest KL."""
    high: float
    n_tokens: int
    kl_mean_nats: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidentTokens:
    """Positions where the baseline is sure: its first choice has `CONFIDENT` or more."""

    n_tokens: int
    kl_mean_nats: float
    kl_p99_nats: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDrift:
    """Drift over all scored positions of a set of samples."""

    n_samples: int
    n_tokens: int
    kl_mean_nats: float
    kl_mean_stderr_nats: float | None
    """Clustered by sample; None for a single sample."""
    kl_interval_nats: tuple[float, float] | None
    """Of the mean, two-sided 90 %; None for a single sample."""
    kl_median_nats: float
    kl_p90_nats: float
    kl_p99_nats: float
    kl_p999_nats: float
    kl_max_nats: float
    confident: ConfidentTokens | None
    """None where the baseline is nowhere that sure."""
    top1_agreement: float
    """Share of positions, 0 to 1."""
    top1_agreement_stderr: float | None
    baseline_perplexity: float
    artifact_perplexity: float
    tail_mass: float
    """Mean probability of the tokens that the comparison takes as one."""
    by_position: tuple[Bin, ...]
    """By the token's place in the answer, counted from 1: powers of two."""
    by_kl: tuple[Bin, ...]
    """By the position's own KL, powers of ten: the distribution. The lowest begins at 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSample:
    """A trace to be read by both models."""

    tokens: tuple[int, ...]
    """Prompt and completion."""
    first_scored: int
    """Index of the completion's first token: it and all after it are scored."""

    @property
    def next_tokens_T(self) -> NDArray[np.int64]:
        """The scored tokens; the first of all cannot be, since nothing precedes it.

        Raises `DriftError` when there are none.
        """
        tokens = np.array(self.tokens[max(self.first_scored, 1) :], np.int64)
        if not len(tokens):
            raise DriftError(
                f"a trace has {len(self.tokens)} tokens and none of them to score",
                hint="a trace must hold a completion after its prompt",
            )
        return tokens


def scored_chunks(
    sample: TokenSample, chunks: Iterable[NDArray[np.float32]]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The logits that predict scored tokens: which of them, and their rows (t, V).

    `chunks` are the logits of all positions one after another.
    """
    # Row t predicts token t + 1, and nothing follows the last row.
    first_row, n_scored = max(sample.first_scored, 1) - 1, len(sample.next_tokens_T)
    start = -first_row
    for logits_TV in chunks:
        first, end = max(start, 0), min(start + len(logits_TV), n_scored)
        if first < end:
            yield slice(first, end), logits_TV[first - start : end - start]
        start += len(logits_TV)


def keep_sample(sample: TokenSample, chunks: Iterable[NDArray[np.float32]]) -> TokenLogprobs:
    """A baseline's distributions of the scored tokens, from the logits of all positions."""
    return concatenate(
        [
            keep_logprobs(logits_TV, sample.next_tokens_T[scored])
            for scored, logits_TV in scored_chunks(sample, chunks)
        ]
    )


def compare_sample(
    baseline: TokenLogprobs, sample: TokenSample, runtime: Runtime | LogprobRuntime
) -> NDArray[np.float64]:
    """The scored tokens of one trace in an artifact against the baseline: rows (T, C).

    Raises `DriftError` as `measure_rows` does, before anything runs where the baseline is of
    another trace, and `LogprobsUnavailableError`.
    """
    next_tokens_T = sample.next_tokens_T
    if len(baseline) != len(next_tokens_T):
        raise DriftError(
            f"the baseline has {len(baseline)} positions of a trace of {len(next_tokens_T)}",
            allowed="one for each scored token",
            hint="the kept baseline belongs to other answers: make it again",
        )
    if isinstance(runtime, LogprobRuntime):
        first_scored = len(sample.tokens) - len(next_tokens_T)
        served = runtime.token_logprobs(sample.tokens, first_scored)
        return measure_rows(baseline, served, next_tokens_T)
    parts = [
        measure_rows(baseline.rows(scored.start, scored.stop), logits_TV, next_tokens_T[scored])
        for scored, logits_TV in scored_chunks(sample, runtime.logits_chunks(sample.tokens))
    ]
    n_found = sum(map(len, parts))
    if n_found != len(next_tokens_T):
        raise RuntimeFailureError(
            f"{runtime.name} gave logits of {n_found} of {len(next_tokens_T)} positions",
            hint="its context is too short, or the runtime is damaged",
        )
    return np.concatenate(parts)


class TokenTable:
    """Collects the rows of samples, in any order."""

    def __init__(self) -> None:
        self._rows_by_sample: dict[int, NDArray[np.float64]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self._rows_by_sample

    def add(self, sample: int, rows_TC: NDArray[np.float64]) -> None:
        """All rows of one sample, in the order of the answer's tokens."""
        assert sample not in self._rows_by_sample
        assert rows_TC.shape[1:] == (len(Column),)
        self._rows_by_sample[sample] = rows_TC

    def summarize(self) -> TokenDrift:
        """The drift over everything added; raises `DriftError` when that is nothing."""
        if not self._rows_by_sample:
            raise DriftError(
                "no position was scored",
                hint="the samples hold no completion: give reasoning traces with an answer",
            )
        samples = [rows_TC for _, rows_TC in sorted(self._rows_by_sample.items())]
        counts_N = np.array([len(rows_TC) for rows_TC in samples], np.float64)
        sums_NC = np.array([rows_TC.sum(axis=0) for rows_TC in samples])
        rows_TC = np.concatenate(samples)
        kl_T, means_C = rows_TC[:, Column.KL], sums_NC.sum(axis=0) / len(rows_TC)
        median, p90, p99, p999, largest = np.quantile(kl_T, (0.5, 0.9, 0.99, 0.999, 1.0)).tolist()
        place_T = np.concatenate([np.arange(1.0, len(rows) + 1) for rows in samples])
        return TokenDrift(
            n_samples=len(samples),
            n_tokens=len(rows_TC),
            kl_mean_nats=float(means_C[Column.KL]),
            kl_mean_stderr_nats=clustered_stderr(sums_NC[:, Column.KL], counts_N),
            kl_interval_nats=mean_interval(sums_NC[:, Column.KL], counts_N, seed=INTERVAL_SEED),
            kl_median_nats=median,
            kl_p90_nats=p90,
            kl_p99_nats=p99,
            kl_p999_nats=p999,
            kl_max_nats=largest,
            confident=_confident(rows_TC),
            top1_agreement=float(means_C[Column.AGREES]),
            top1_agreement_stderr=clustered_stderr(sums_NC[:, Column.AGREES], counts_N),
            baseline_perplexity=float(np.exp(min(means_C[Column.BASELINE_NLL], MAX_NLL))),
            artifact_perplexity=float(np.exp(min(means_C[Column.ARTIFACT_NLL], MAX_NLL))),
            tail_mass=float(means_C[Column.TAIL_MASS]),
            by_position=_bins(rows_TC, place_T, base=2, lowest_power=0),
            by_kl=_bins(rows_TC, kl_T, base=10, lowest_power=KL_FLOOR_POWER),
        )


def clustered_stderr(sums_N: NDArray[np.float64], counts_N: NDArray[np.float64]) -> float | None:
    """Standard error of sum(sums) / sum(counts) over N samples; None for fewer than two."""
    n = len(sums_N)
    if n < 2:
        return None
    residual_N = sums_N - sums_N.sum() / counts_N.sum() * counts_N
    return float(np.sqrt(n / (n - 1) * (residual_N**2).sum()) / counts_N.sum())


def _confident(rows_TC: NDArray[np.float64]) -> ConfidentTokens | None:
    sure_TC = rows_TC[rows_TC[:, Column.BASELINE_TOP] >= CONFIDENT]
    if not len(sure_TC):
        return None
    return ConfidentTokens(
        n_tokens=len(sure_TC),
        kl_mean_nats=float(sure_TC[:, Column.KL].mean()),
        kl_p99_nats=float(np.quantile(sure_TC[:, Column.KL], 0.99)),
        top1_agreement=float(sure_TC[:, Column.AGREES].mean()),
    )


def _bins(
    rows_TC: NDArray[np.float64], values_T: NDArray[np.float64], *, base: int, lowest_power: int
) -> tuple[Bin, ...]:
    """Rows by powers of `base` of their value, lower ones in a bin from 0; empty ones left out."""
    edges = [0.0, float(base) ** lowest_power]
    while edges[-1] <= values_T.max():
        edges.append(float(base) ** (lowest_power + len(edges) - 1))
    bin_T = np.searchsorted(edges, values_T, side="right") - 1
    return tuple(
        Bin(
            low=edges[index],
            high=edges[index + 1],
            n_tokens=int((bin_T == index).sum()),
            kl_mean_nats=float(rows_TC[bin_T == index, Column.KL].mean()),
            top1_agreement=float(rows_TC[bin_T == index, Column.AGREES].mean()),
        )
        for index in np.unique(bin_T).tolist()
    )
