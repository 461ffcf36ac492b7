"""Reasoning traces: the baseline's own answers, with its distributions over every token."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.answers import Answer
from tightfit.drift.measures.tokens import TokenSample
from tightfit.errors import DriftError
from tightfit.files import whole_file
from tightfit.runtimes.logprobs import TokenLogprobs, from_arrays, to_arrays

MAX_TRACES = 64
"""Traces that token drift is measured on: their mean KL is known to a few percent by then."""
MAX_TRACE_TOKENS = 4096
"""Of a longer answer the first so many: all positions of most answers, at a bounded cost."""
KEY_DIGITS = 16
_NOISE = "noise"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """One trace as the baseline reads it."""

    sample: TokenSample
    logprobs: TokenLogprobs
    """The baseline's, one position for each token of the answer."""
    noise: NDArray[np.float64]
    """Rows of `measures.tokens` between the baseline's two runtimes, (T, columns)."""


def trace_of(prompt: tuple[int, ...], answer: Answer) -> TokenSample | None:
    """The trace of an answer; None where the model wrote nothing."""
    if not answer.token_ids:
        return None
    return TokenSample(
        tokens=(*prompt, *answer.token_ids[:MAX_TRACE_TOKENS]), first_scored=len(prompt)
    )


def tokens_key(sample: TokenSample) -> str:
    """A short name for the trace's tokens."""
    text = json.dumps([sample.first_scored, *sample.tokens])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def write_trace(path: Path, logprobs: TokenLogprobs, noise: NDArray[np.float64]) -> None:
    """Keep what the baseline computed of a trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, part.open("wb") as file:
        arrays: dict[str, Any] = {**to_arrays([logprobs]), _NOISE: noise}
        np.savez_compressed(file, **arrays)


def read_trace(path: Path, sample: TokenSample) -> Trace:
    """The trace of `sample` as it was kept; raises `DriftError` when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = dict(arrays)
        noise = fields.pop(_NOISE)
        (logprobs,) = from_arrays(fields)
        expected = len(sample.tokens) - sample.first_scored
        if not len(logprobs) == len(noise) == expected:
            raise ValueError(f"{len(logprobs)} positions, the answer has {expected}")
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise DriftError(
            f"{path} is damaged: {error}",
            hint="delete it, or restore the kept baseline: the model computes it again",
        ) from error
    return Trace(sample=sample, logprobs=logprobs, noise=noise)
