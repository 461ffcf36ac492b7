"""Next-token distributions in the form that is worth keeping.

Of each position only the most probable tokens are kept: the fewest that hold a probability of
1 - `NUCLEUS_TAIL`, at most `NUCLEUS_TOKENS`. A reasoning model is sure of most of its tokens, so
that a few numbers a position stand for a vocabulary of 152,064.

Log-probabilities come from a log-softmax in float64 and are kept as float32, which is exact to
6e-8 of their size: as `drift.measures.partition` computes it, the divergence of a distribution from
itself stays below 1e-8 nats.

Shape legend: T positions, V vocabulary, E kept tokens of all positions together, N traces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError

NUCLEUS_TAIL: Final = 1e-6
"""Probability left out of a position. What is lost of its KL divergence is this times a few nats
(the divergence within the tail): below 1e-5 nats, a thousandth of what a 4-bit file shows and less
than another runtime's arithmetic does. Measured with 4-bit rounding on tiny-r1: 6e-6 of the mean,
2 % of the median (near 1e-7 nats), at 116 tokens and 540 bytes a position, compressed; 1e-5 would
take a quarter of that and lose 9e-5 of the mean and a quarter of the median."""
NUCLEUS_TOKENS: Final = 2048
"""Tokens kept of a position at most: 16 KiB. Only a distribution without a preference needs more;
what it then leaves out is counted as its tail."""
PROBABILITY_FLOORS: Final = (1e-6, 1e-9, 0.0)
"""Tokens looked at for the nucleus, wider until it is in: the first suffices for most positions and
leaves a few hundred to sort."""
BLOCK_LOGITS: Final = 2**19
"""Logits turned to float64 at a time: 4 MiB an array."""
MASS_ERROR: Final = 1e-3
"""By which kept probabilities may exceed 1: servers round theirs."""
ARRAY_TYPES: Final[Mapping[str, type[np.generic]]] = {
    "positions_N": np.int64,
    "kept_T": np.int32,
    "ids_E": np.int32,
    "logprobs_E": np.float32,
    "next_logprobs_T": np.float32,
}
"""What `to_arrays` writes: positions of each trace, kept tokens of each position of all traces, and
the entries of all positions one after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Of T positions, the log-probabilities of some tokens each, the most probable first."""

    offsets: NDArray[np.int64]
    """(T + 1,): position t has the entries offsets[t] to offsets[t + 1], one or more."""
    ids_E: NDArray[np.int32]
    logprobs_E: NDArray[np.float32]
    """Natural logarithms."""
    next_logprobs_T: NDArray[np.float32]
    """Of the token that really follows, kept or not."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def kept_T(self) -> NDArray[np.int64]:
        """Kept tokens of each position."""
        return np.diff(self.offsets)

    @property
    def top_ids_T(self) -> NDArray[np.int32]:
        """The most probable token of each position."""
        return self.ids_E[self.offsets[:-1]]

    def rows(self, start: int, end: int) -> "TokenLogprobs":
        """Positions `start` to `end`."""
        entries = slice(int(self.offsets[start]), int(self.offsets[end]))
        return TokenLogprobs(
            offsets=self.offsets[start : end + 1] - self.offsets[start],
            ids_E=self.ids_E[entries],
            logprobs_E=self.logprobs_E[entries],
            next_logprobs_T=self.next_logprobs_T[start:end],
        )


def log_softmax(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities (T, V) in float64."""
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(axis=1, keepdims=True)
    shifted_TV -= np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))
    return shifted_TV


def keep_logprobs(
    logits_TV: NDArray[np.float32], next_tokens_T: NDArray[np.int64]
) -> TokenLogprobs:
    """The distributions of T positions, each cut to its nucleus.

    `next_tokens_T` are the tokens that really follow. Equal logits are taken in the order of their
    ids. Raises `RuntimeFailureError` for logits that are NaN or infinite.
    """
    assert len(logits_TV) == len(next_tokens_T)
    if not np.isfinite(logits_TV).all():
        raise RuntimeFailureError(
            "the model produced logits that are NaN or infinite",
            allowed="finite logits",
            hint="its weights are damaged, or its numbers overflow float16: check the files, or "
            "run it in bfloat16 or float32",
        )
    ids: list[NDArray[np.int64]] = []
    logprobs: list[NDArray[np.float64]] = []
    next_logprobs_T = np.empty(len(logits_TV), np.float32)
    block_rows = max(1, BLOCK_LOGITS // logits_TV.shape[1])
    for start in range(0, len(logits_TV), block_rows):
        # The steps of `log_softmax`; of its values only those of the kept tokens are formed.
        shifted_TV = logits_TV[start : start + block_rows].astype(np.float64)
        shifted_TV -= shifted_TV.max(axis=1, keepdims=True)
        weights_TV = np.exp(shifted_TV)
        totals_T = weights_TV.sum(axis=1)
        for row, (shifted_V, weights_V, total) in enumerate(
            zip(shifted_TV, weights_TV, totals_T, strict=True), start
        ):
            kept = _nucleus(logits_TV[row], weights_V, float(total))
            ids.append(kept)
            logprobs.append(shifted_V[kept] - np.log(total))
            next_logprobs_T[row] = shifted_V[next_tokens_T[row]] - np.log(total)
    return TokenLogprobs(
        offsets=np.cumsum([0, *(len(kept) for kept in ids)], dtype=np.int64),
        ids_E=np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int32),
        logprobs_E=np.concatenate([np.empty(0), *logprobs]).astype(np.float32),
        next_logprobs_T=next_logprobs_T,
    )


def _nucleus(
    logits_V: NDArray[np.float32], weights_V: NDArray[np.float64], total: float
) -> NDArray[np.int64]:
    """Ids of the fewest tokens that hold 1 - `NUCLEUS_TAIL`, the most probable first.

    `weights_V` are probabilities times `total`.
    """
    target = (1 - NUCLEUS_TAIL) * total
    candidates = np.arange(0)
    for floor in PROBABILITY_FLOORS:
        candidates = np.flatnonzero(weights_V >= floor * total)
        if len(candidates) > NUCLEUS_TOKENS or weights_V[candidates].sum() >= target:
            break
    if len(candidates) > NUCLEUS_TOKENS:
        lowest = np.partition(logits_V[candidates], -NUCLEUS_TOKENS)[-NUCLEUS_TOKENS]
        candidates = candidates[logits_V[candidates] >= lowest]
    # Candidates are in the order of their ids, which a stable sort keeps among equals.
    ordered = candidates[np.argsort(-logits_V[candidates], kind="stable")]
    n_nucleus = int(np.searchsorted(np.cumsum(weights_V[ordered]), target)) + 1
    return ordered[: min(n_nucleus, NUCLEUS_TOKENS)]


def concatenate(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
    """Positions of one trace that came in one or more pieces."""
    kept = np.concatenate([part.kept_T for part in parts])
    return TokenLogprobs(
        offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        ids_E=np.concatenate([part.ids_E for part in parts]),
        logprobs_E=np.concatenate([part.logprobs_E for part in parts]),
        next_logprobs_T=np.concatenate([part.next_logprobs_T for part in parts]),
    )


def to_arrays(traces: Sequence[TokenLogprobs]) -> dict[str, NDArray[Any]]:
    """One or more traces as arrays by name, without loss: what a baseline is kept as."""
    joined = concatenate(traces)
    arrays = {
        "positions_N": np.array([len(trace) for trace in traces]),
        "kept_T": joined.kept_T,
        "ids_E": joined.ids_E,
        "logprobs_E": joined.logprobs_E,
        "next_logprobs_T": joined.next_logprobs_T,
    }
    return {name: arrays[name].astype(kind) for name, kind in ARRAY_TYPES.items()}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[TokenLogprobs, ...]:
    """The traces that `to_arrays` wrote; raises `ValueError` saying what is damaged."""
    for name, kind in ARRAY_TYPES.items():
        if name not in arrays:
            raise ValueError(f"no array {name}")
        found = arrays[name]
        if found.dtype != kind or found.ndim != 1:
            raise ValueError(
                f"{name} is {found.dtype} of shape {found.shape}, expected {np.dtype(kind)} (n,)"
            )
    positions_N, kept_T = arrays["positions_N"], arrays["kept_T"].astype(np.int64)
    for name, counts in (("positions_N", positions_N), ("kept_T", kept_T)):
        if (counts < 1).any():
            raise ValueError(f"{name} has {counts.min()}, expected 1 or more")
    lengths = {"kept_T": positions_N.sum(), "next_logprobs_T": positions_N.sum()}
    lengths |= {"ids_E": kept_T.sum(), "logprobs_E": kept_T.sum()}
    for name, length in lengths.items():
        if len(arrays[name]) != length:
            raise ValueError(f"{name} has {len(arrays[name])} entries, expected {length}")
    joined = TokenLogprobs(
        offsets=np.concatenate([[0], np.cumsum(kept_T)]).astype(np.int64),
        ids_E=arrays["ids_E"],
        logprobs_E=arrays["logprobs_E"],
        next_logprobs_T=arrays["next_logprobs_T"],
    )
    check_logprobs(joined)
    ends_N = np.cumsum(positions_N)
    starts_N = ends_N - positions_N
    return tuple(
        joined.rows(int(start), int(end)) for start, end in zip(starts_N, ends_N, strict=True)
    )


def check_logprobs(logprobs: TokenLogprobs) -> None:
    """Raise `ValueError` for what are no log-probabilities, the most probable first."""
    for name, values in (
        ("logprobs_E", logprobs.logprobs_E),
        ("next_logprobs_T", logprobs.next_logprobs_T),
    ):
        # Not `values > 0`, which a NaN would pass.
        wrong = ~((values <= 0) & np.isfinite(values))
        if wrong.any():
            raise ValueError(f"{name} has {values[wrong][0]}, expected a finite logarithm up to 0")
    if (logprobs.ids_E < 0).any():
        raise ValueError(f"ids_E has {logprobs.ids_E.min()}, expected token ids")
    position_E = np.repeat(np.arange(len(logprobs)), logprobs.kept_T)
    width = 1 + int(logprobs.ids_E.max(initial=0))
    if len(np.unique(position_E * width + logprobs.ids_E)) < len(logprobs.ids_E):
        raise ValueError("ids_E names a token twice at one position")
    rises_E = np.diff(logprobs.logprobs_E) > 0
    if (rises_E & (np.diff(position_E) == 0)).any():
        raise ValueError("logprobs_E rises within a position, expected the most probable first")
    p_E = np.exp(logprobs.logprobs_E.astype(np.float64))
    mass_T = np.bincount(position_E, p_E, minlength=len(logprobs))
    if (mass_T > 1 + MASS_ERROR).any():
        raise ValueError(f"logprobs_E holds a probability of {mass_T.max():.6f} at one position")
