"""Token-level drift between two models that read the same tokens.

For baseline distribution p and artifact distribution q over the next token, at each position:

    KL(p || q) = sum_v p_v * (log p_v - log q_v)        in nats, log-softmax in float64

with mean, median, 99th percentile and maximum over positions; top-1 agreement (the share of
positions whose most probable tokens are the same); and the perplexity of both on the tokens that
really follow.

The tokens of one trace are not independent, so standard errors take the *sample* as the unit. With
S_i the sum over sample i, T_i its tokens and m = sum S / sum T, the ratio estimator's variance
(Cochran, Sampling Techniques, 1977, section 6.4; cluster-robust with n/(n-1)) is

    var(m) = n / (n - 1) * sum_i (S_i - m * T_i)^2 / (sum_i T_i)^2

Shape legend: T tokens (positions), V vocabulary, N samples.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import DriftError

BLOCK_LOGITS = 2**21
"""Logits turned to float64 at a time: 16 MiB an array, five arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDrift:
    """Drift over all scored positions of a set of samples."""

    n_samples: int
    n_tokens: int
    kl_mean_nats: float
    kl_mean_stderr_nats: float | None
    """Clustered by sample; None for a single sample."""
    kl_median_nats: float
    kl_p99_nats: float
    kl_max_nats: float
    top1_agreement: float
    """Share of positions, 0 to 1."""
    top1_agreement_stderr: float | None
    baseline_perplexity: float
    artifact_perplexity: float


def log_softmax(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities (T, V) in float64."""
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(axis=1, keepdims=True)
    shifted_TV -= np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))
    return shifted_TV


def kl_divergence(
    baseline_TV: NDArray[np.float64], artifact_TV: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL(baseline || artifact) in nats (T,), from log-probabilities (T, V)."""
    kl_T: NDArray[np.float64] = np.einsum(
        "tv,tv->t", np.exp(baseline_TV), baseline_TV - artifact_TV
    )
    # Rounding may leave -1e-16 where the two are equal; a divergence is never negative.
    return np.maximum(kl_T, 0.0)


def clustered_stderr(sums_N: NDArray[np.float64], counts_N: NDArray[np.float64]) -> float | None:
    """Standard error of sum(sums) / sum(counts) over N samples; None for fewer than two."""
    n = len(sums_N)
    if n < 2:
        return None
    residual_N = sums_N - sums_N.sum() / counts_N.sum() * counts_N
    return float(np.sqrt(n / (n - 1) * (residual_N**2).sum()) / counts_N.sum())


class DriftAccumulator:
    """Takes logits chunk by chunk and keeps four numbers a position."""

    def __init__(self) -> None:
        self._parts_by_sample: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)

    def update(
        self,
        baseline_logits_TV: NDArray[np.float32],
        artifact_logits_TV: NDArray[np.float32],
        next_tokens_T: NDArray[np.int64],
        *,
        sample: int,
    ) -> None:
        """Add scored positions of one sample.

        Both logits are float32 (T, V) for the same positions; `next_tokens_T` are the tokens that
        follow them. Raises `DriftError` when the vocabularies differ or a logit is not finite.
        """
        if baseline_logits_TV.shape != artifact_logits_TV.shape:
            raise DriftError(
                f"logits of shape {baseline_logits_TV.shape} (baseline) and "
                f"{artifact_logits_TV.shape} (artifact)",
                allowed="both models must have the same vocabulary",
                hint="the artifact was made from another checkpoint: give that one as baseline",
            )
        assert len(next_tokens_T) == len(baseline_logits_TV)
        rows = max(1, BLOCK_LOGITS // baseline_logits_TV.shape[1])
        for start in range(0, len(next_tokens_T), rows):
            block = slice(start, start + rows)
            self._parts_by_sample[sample].append(
                _measure(baseline_logits_TV[block], artifact_logits_TV[block], next_tokens_T[block])
            )

    def result(self) -> TokenDrift:
        """The drift over everything added; raises `DriftError` when that is nothing."""
        if not self._parts_by_sample:
            raise DriftError(
                "no position was scored",
                hint="the samples hold no completion: give reasoning traces with an answer",
            )
        samples = [np.concatenate(parts) for parts in self._parts_by_sample.values()]
        counts_N = np.array([len(sample) for sample in samples], np.float64)
        sums = np.array([sample.sum(axis=0) for sample in samples])
        tokens = np.concatenate(samples)
        kl, agrees, baseline_nll, artifact_nll = tokens.mean(axis=0)
        median, p99, largest = np.quantile(tokens[:, 0], (0.5, 0.99, 1.0))
        return TokenDrift(
            n_samples=len(samples),
            n_tokens=len(tokens),
            kl_mean_nats=float(kl),
            kl_mean_stderr_nats=clustered_stderr(sums[:, 0], counts_N),
            kl_median_nats=float(median),
            kl_p99_nats=float(p99),
            kl_max_nats=float(largest),
            top1_agreement=float(agrees),
            top1_agreement_stderr=clustered_stderr(sums[:, 1], counts_N),
            baseline_perplexity=float(np.exp(baseline_nll)),
            artifact_perplexity=float(np.exp(artifact_nll)),
        )


def _measure(
    baseline_logits_TV: NDArray[np.float32],
    artifact_logits_TV: NDArray[np.float32],
    next_tokens_T: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Columns KL, agreement, baseline and artifact negative log-likelihood, (T, 4)."""
    for name, logits_TV in (("baseline", baseline_logits_TV), ("artifact", artifact_logits_TV)):
        if not np.isfinite(logits_TV).all():
            raise DriftError(
                f"the {name} produced logits that are NaN or infinite",
                hint="its weights are damaged, or its numbers overflow float16: run "
                "`tightfit verify` on the artifact",
            )
    baseline_TV, artifact_TV = log_softmax(baseline_logits_TV), log_softmax(artifact_logits_TV)
    agrees_T = baseline_logits_TV.argmax(axis=1) == artifact_logits_TV.argmax(axis=1)
    row_T = np.arange(len(next_tokens_T))
    return np.stack(
        [
            kl_divergence(baseline_TV, artifact_TV),
            agrees_T.astype(np.float64),
            -baseline_TV[row_T, next_tokens_T],
            -artifact_TV[row_T, next_tokens_T],
        ],
        axis=1,
    )
