"""KL divergence where of a distribution only the most probable tokens are known.

The vocabulary is cut into each known token by itself and all others as one:

    KL = sum_k p_k log(p_k / q_k) + r log(r / s),    r = 1 - sum_k p_k,   s = 1 - sum_k q_k

with k over the tokens that the baseline keeps, and where the artifact too has only some, that both
keep. Merging outcomes never raises a divergence (data processing inequality: Cover and Thomas,
Elements of Information Theory, 2nd edition, sections 2.5 and 2.8), so this is a lower bound of the
full KL, less than it by r times the divergence within the rest. r is reported as the tail mass.

Computed as the sum of p log(p / q) - p + q, which is the same for numbers that add up to 1, but is
nowhere negative, and to which the float32 rounding of p adds its square only.

Shape legend: T positions, V vocabulary, E kept tokens of all positions together, C columns.
"""

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.measures.divergence import BLOCK_LOGITS, check_finite
from tightfit.errors import DriftError
from tightfit.runtimes.logprobs import TokenLogprobs

FLOAT32_MASS_ERROR: Final = 2.0**-23
"""What float32 log-probabilities leave open of a sum of probabilities: a rest below this is not
told from none."""
LEAST_PROBABILITY: Final = float(np.finfo(np.float64).tiny)
"""Of a rest that underflows to 0 though it has tokens: it is not impossible."""


class Column(IntEnum):
    """What is kept of a position."""

    KL = 0
    """Nats."""
    AGREES = 1
    """1 where the most probable tokens are the same."""
    BASELINE_NLL = 2
    """Negative log-likelihood of the token that follows, nats."""
    ARTIFACT_NLL = 3
    BASELINE_TOP = 4
    """Probability of the baseline's most probable token."""
    TAIL_MASS = 5
    """The baseline's probability of the tokens that are taken as one."""


def measure_rows(
    baseline: TokenLogprobs,
    artifact: NDArray[np.float32] | TokenLogprobs,
    next_tokens_T: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Positions compared: (T, C), columns as in `Column`.

    `artifact` is its logits (T, V) or what a server gives. Raises `DriftError` when the two cannot
    belong to the same positions and vocabulary, or a logit is NaN or infinite.
    """
    if not len(baseline) == len(artifact) == len(next_tokens_T):
        raise DriftError(
            f"{len(baseline)} positions of the baseline, {len(artifact)} of the artifact",
            allowed=f"one for each of {len(next_tokens_T)} scored tokens",
            hint="the kept baseline belongs to other answers, or the server leaves positions out",
        )
    if isinstance(artifact, TokenLogprobs):
        return _measure_kept(baseline, artifact)
    check_finite(artifact, "artifact")
    vocabulary = artifact.shape[1]
    largest = max(baseline.ids_E.max(initial=0), next_tokens_T.max(initial=0))
    if largest >= vocabulary:
        raise DriftError(
            f"token {largest} of the baseline, and a vocabulary of {vocabulary} in the artifact",
            allowed="both models must have the same vocabulary",
            hint="the artifact was made from another checkpoint: give that one as baseline",
        )
    rows_TC = np.empty((len(baseline), len(Column)))
    block_rows = max(1, BLOCK_LOGITS // vocabulary)
    for start in range(0, len(baseline), block_rows):
        end = min(start + block_rows, len(baseline))
        rows_TC[start:end] = _measure_logits(
            baseline.rows(start, end), artifact[start:end], next_tokens_T[start:end]
        )
    return rows_TC


def _measure_logits(
    baseline: TokenLogprobs, logits_TV: NDArray[np.float32], next_tokens_T: NDArray[np.int64]
) -> NDArray[np.float64]:
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(axis=1, keepdims=True)
    weights_TV = np.exp(shifted_TV)
    totals_T = weights_TV.sum(axis=1)
    log_totals_T = np.log(totals_T)
    t = np.arange(len(baseline))
    row_E = np.repeat(t, baseline.kept_T)
    # The artifact's rest is summed by itself: 1 - sum_k q_k would lose a small one.
    weights_TV[row_E, baseline.ids_E] = 0.0
    rest_T = weights_TV.sum(axis=1) / totals_T
    kl_T, tail_T = _partition_kl(
        row_E,
        baseline.logprobs_E.astype(np.float64),
        shifted_TV[row_E, baseline.ids_E] - log_totals_T[row_E],
        np.where(baseline.kept_T < logits_TV.shape[1], np.maximum(rest_T, LEAST_PROBABILITY), 0.0),
    )
    return _columns(
        baseline,
        kl_T=kl_T,
        tail_T=tail_T,
        artifact_top_T=logits_TV.argmax(axis=1),
        artifact_next_T=shifted_TV[t, next_tokens_T] - log_totals_T,
    )


def _measure_kept(baseline: TokenLogprobs, artifact: TokenLogprobs) -> NDArray[np.float64]:
    row_E, at_baseline_E, at_artifact_E = _in_both(baseline, artifact)
    q_log_E = artifact.logprobs_E[at_artifact_E].astype(np.float64)
    known_T = np.bincount(row_E, np.exp(q_log_E), minlength=len(artifact))
    kl_T, tail_T = _partition_kl(
        row_E,
        baseline.logprobs_E[at_baseline_E].astype(np.float64),
        q_log_E,
        np.maximum(1 - known_T, FLOAT32_MASS_ERROR),
    )
    return _columns(
        baseline,
        kl_T=kl_T,
        tail_T=tail_T,
        artifact_top_T=artifact.top_ids_T,
        artifact_next_T=artifact.next_logprobs_T,
    )


def _in_both(
    one: TokenLogprobs, other: TokenLogprobs
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens kept by both: their position, and their entry in either."""
    width = 1 + max(int(each.ids_E.max(initial=0)) for each in (one, other))
    key_one, key_other = (
        np.repeat(np.arange(len(each)), each.kept_T) * width + each.ids_E for each in (one, other)
    )
    both, at_one, at_other = np.intersect1d(
        key_one, key_other, assume_unique=True, return_indices=True
    )
    return both // width, at_one, at_other


def _partition_kl(
    row_E: NDArray[np.int64],
    p_log_E: NDArray[np.float64],
    q_log_E: NDArray[np.float64],
    artifact_rest_T: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """KL (T,) and the baseline's rest (T,); an artifact's rest of 0 says that there is none."""
    n = len(artifact_rest_T)
    p_E = np.exp(p_log_E)
    known_T = np.bincount(row_E, p_E, minlength=n)
    terms_E = p_E * (p_log_E - q_log_E) - p_E + np.exp(q_log_E)
    exists_T = artifact_rest_T > 0
    tail_T = np.where(exists_T, np.maximum(1 - known_T, 0.0), 0.0)
    ratio_T = np.ones(n)
    np.divide(tail_T, artifact_rest_T, out=ratio_T, where=exists_T & (tail_T > 0))
    kl_T = tail_T * np.log(ratio_T) - tail_T + artifact_rest_T
    kl_T = kl_T + np.bincount(row_E, terms_E, minlength=n)
    # Each term is 0 or more, less the last bit's rounding.
    return np.maximum(kl_T, 0.0), tail_T


def _columns(
    baseline: TokenLogprobs,
    *,
    kl_T: NDArray[np.float64],
    tail_T: NDArray[np.float64],
    artifact_top_T: NDArray[np.int64] | NDArray[np.int32],
    artifact_next_T: NDArray[np.float64] | NDArray[np.float32],
) -> NDArray[np.float64]:
    columns = {
        Column.KL: kl_T,
        Column.AGREES: baseline.top_ids_T == artifact_top_T,
        Column.BASELINE_NLL: -baseline.next_logprobs_T,
        Column.ARTIFACT_NLL: -artifact_next_T,
        Column.BASELINE_TOP: np.exp(baseline.logprobs_E[baseline.offsets[:-1]].astype(np.float64)),
        Column.TAIL_MASS: tail_T,
    }
    return np.stack([columns[column].astype(np.float64) for column in Column], axis=1)
