"""Choosing the next token: greedy or nucleus sampling.

softmax(logits / temperature), then nucleus sampling (Holtzman et al., 2020): the smallest set of
most probable tokens whose probability reaches `top_p`.

Every prompt has its own random stream, seeded by (seed, number of the stream): what is drawn
depends neither on which prompts share a batch nor on which were completed before an interruption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    streams: Sequence[int]
    """Number of the random stream of each prompt."""

    def random(self, prompt_index: int) -> np.random.Generator:
        """The random stream of a prompt."""
        return np.random.default_rng([self.seed, self.streams[prompt_index]])


def choose_token(
    logits_V: NDArray[np.float32], sampling: Sampling, random: np.random.Generator
) -> int:
    """The next token id; raises `RuntimeFailureError` for logits that are NaN or infinite."""
    if not np.isfinite(logits_V.max()):  # a NaN comes through; -inf is how a token is ruled out
        raise RuntimeFailureError(
            "the model produced logits that are NaN or infinite",
            hint="its weights are damaged, or its numbers overflow float16: run "
            "`tightfit verify` on the artifact",
        )
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    p_V = np.exp(scaled_V - scaled_V.max())
    p_V /= p_V.sum()
    # Tokens below this sum to less than 1 - top_p: they are outside the nucleus, and leaving
    # them out makes the sort short.
    kept = np.flatnonzero(p_V >= (1 - sampling.top_p) / p_V.size)
    kept = kept[np.argsort(-p_V[kept], kind="stable")]
    cumulative = np.cumsum(p_V[kept])
    n_nucleus = int(np.searchsorted(cumulative, sampling.top_p)) + 1
    nucleus = kept[:n_nucleus]
    draw = random.random() * cumulative[min(n_nucleus, kept.size) - 1]
    return int(nucleus[min(int(np.searchsorted(cumulative, draw, "right")), nucleus.size - 1)])
