"""KL divergence of next-token distributions over the whole vocabulary.

    KL(p || q) = sum_v p_v * (log p_v - log q_v)        in nats, log-softmax in float64

Shape legend: T tokens (positions), V vocabulary.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import DriftError
from tightfit.runtimes.logprobs import log_softmax

BLOCK_LOGITS: Final = 2**19
"""Logits turned to float64 at a time: 4 MiB an array."""


def kl_divergence(
    baseline_TV: NDArray[np.float64], artifact_TV: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL(baseline || artifact) in nats (T,), from log-probabilities (T, V)."""
    kl_T: NDArray[np.float64] = np.einsum(
        "tv,tv->t", np.exp(baseline_TV), baseline_TV - artifact_TV
    )
    # Rounding may leave -1e-16 where the two are equal; a divergence is never negative.
    return np.maximum(kl_T, 0.0)


def kl_of_logits(
    baseline_TV: NDArray[np.float32], artifact_TV: NDArray[np.float32]
) -> NDArray[np.float64]:
    """KL(baseline || artifact) in nats (T,), from float32 logits (T, V).

    Raises `DriftError` when the vocabularies differ or a logit is not finite.
    """
    if baseline_TV.shape != artifact_TV.shape:
        raise DriftError(
            f"logits of shape {baseline_TV.shape} (baseline) and {artifact_TV.shape} (artifact)",
            allowed="both models must have the same vocabulary",
            hint="the artifact was made from another checkpoint: give that one as baseline",
        )
    check_finite(baseline_TV, "baseline")
    check_finite(artifact_TV, "artifact")
    kl_T = np.empty(len(baseline_TV))
    rows = max(1, BLOCK_LOGITS // baseline_TV.shape[1])
    for start in range(0, len(kl_T), rows):
        block = slice(start, start + rows)
        kl_T[block] = kl_divergence(
            log_softmax(baseline_TV[block]), log_softmax(artifact_TV[block])
        )
    return kl_T


def check_finite(logits_TV: NDArray[np.float32], whose: str) -> None:
    """Raise `DriftError` for logits that are no numbers; `whose`: `baseline` or `artifact`."""
    if not np.isfinite(logits_TV).all():
        raise DriftError(
            f"the {whose} produced logits that are NaN or infinite",
            hint="its weights are damaged, or its numbers overflow float16: run `tightfit verify` "
            "on the artifact",
        )
