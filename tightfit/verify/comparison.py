"""Logits of a runtime against those of transformers, on the same token ids.

    relative difference = rms(logit - reference) / rms(reference), each less its position's mean
    relative maximum    = max |logit - reference| / max |reference|
    KL                  = KL(reference || runtime) over the whole vocabulary

The mean of a position is what softmax does not see.

Shape legend: T positions, V vocabulary.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.calib.calibration import CalibrationOptions, load_calibration
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.drift.measures.divergence import kl_of_logits
from tightfit.export.manifest import Parity

N_SEQUENCES = 4
SEQUENCE_TOKENS = 256
"""Tokens of a sequence at most; together some hundred positions, enough to show a wrong layout."""


def token_sequences(folder: Path) -> list[list[int]]:
    """Token ids of a few embedded texts, by the tokenizer in `folder`."""
    options = CalibrationOptions(samples=N_SEQUENCES, max_tokens=SEQUENCE_TOKENS)
    calibration = load_calibration(load_tokenizer(folder), options)
    return [list(sample.ids) for sample in calibration.samples]


class LogitComparison:
    """Takes the logits sequence by sequence and keeps sums."""

    def __init__(self) -> None:
        self._kl_parts: list[NDArray[np.float64]] = []
        self._agreements = 0
        self._values = 0
        self._abs_sum = 0.0
        self._abs_max = 0.0
        self._reference_max = 0.0
        self._difference_parts: list[NDArray[np.float64]] = []
        self._reference_parts: list[NDArray[np.float64]] = []

    def add(self, reference_TV: NDArray[np.float32], actual_TV: NDArray[np.float32]) -> None:
        """All positions of one sequence; raises `DriftError` for what is no number."""
        difference_TV = actual_TV - reference_TV
        magnitude_TV = np.abs(difference_TV)
        self._values += magnitude_TV.size
        self._abs_sum += float(magnitude_TV.sum(dtype=np.float64))
        # Not `max`, which loses a NaN.
        self._abs_max = float(np.maximum(self._abs_max, magnitude_TV.max()))
        self._reference_max = max(self._reference_max, float(np.abs(reference_TV).max()))
        self._difference_parts.append(_centred_squares(difference_TV))
        self._reference_parts.append(_centred_squares(reference_TV))
        # The last position has no next token to predict.
        reference_TV, actual_TV = reference_TV[:-1], actual_TV[:-1]
        self._kl_parts.append(kl_of_logits(reference_TV, actual_TV))
        self._agreements += int((reference_TV.argmax(axis=1) == actual_TV.argmax(axis=1)).sum())

    @property
    def relative_difference(self) -> float:
        """By root mean squares."""
        difference_T, reference_T = self._squares()
        return math.sqrt(difference_T.sum() / reference_T.sum())

    @property
    def typical_difference(self) -> float:
        """The same of single positions, their median."""
        difference_T, reference_T = self._squares()
        return float(np.median(np.sqrt(difference_T / reference_T)))

    @property
    def relative_maximum(self) -> float:
        """By the largest."""
        return self._abs_max / self._reference_max

    def _squares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.concatenate(self._difference_parts), np.concatenate(self._reference_parts)

    def result(self, runtime: str, *, passed: bool) -> Parity:
        """The record of what was added."""
        kl_T = np.concatenate(self._kl_parts)
        return Parity(
            runtime=runtime,
            tokens=len(kl_T),
            mean_abs_difference=self._abs_sum / self._values,
            max_abs_difference=self._abs_max,
            relative_difference=self.relative_difference,
            typical_difference=self.typical_difference,
            relative_maximum=self.relative_maximum,
            mean_kl_nats=float(kl_T.mean()),
            max_kl_nats=float(kl_T.max()),
            top1_agreement=self._agreements / len(kl_T),
            passed=passed,
        )


def _centred_squares(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    centred_TV = logits_TV - logits_TV.mean(axis=1, keepdims=True)
    return np.asarray(np.square(centred_TV).sum(axis=1, dtype=np.float64))
