"""Two accuracies measured on the same problems, and what is known of the drop between them.

The intervals are in `intervals`. The test of `no difference` is on problems whose score differs,
b higher with the baseline and c with the artifact: b of b + c is binomial with probability 1/2.
With one answer a problem that is McNemar's exact test, with several it is the exact sign test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tightfit.drift.statistics.bootstrap import bootstrap_interval
from tightfit.drift.statistics.intervals import (
    accuracy_interval,
    levels_for,
    repeated_interval,
    tango_interval,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedAccuracy:
    """Two accuracies on the same problems and the interval of the drop between them.

    With several answers to a problem, its score is the share of them that is correct, and
    accuracies are means of scores.
    """

    n: int
    """Problems."""
    samples: int
    """Answers to each."""
    baseline_accuracy: float
    """Mean score, 0 to 1."""
    artifact_accuracy: float
    baseline_interval: tuple[float, float]
    """Two-sided 90 %, as a share 0 to 1."""
    artifact_interval: tuple[float, float]
    baseline_only: int
    """Problems whose score is higher with the baseline."""
    artifact_only: int
    drop_points: float
    """Baseline minus artifact in percentage points; positive is a loss."""
    drop_interval_points: tuple[float, float]
    """Two-sided 90 %: what the gate decides on."""
    bootstrap_interval_points: tuple[float, float]
    """Two-sided 90 %, by resampling problems: shown beside it, it assumes nothing."""
    mcnemar_p: float
    """Exact two-sided p-value of `no difference`, on `baseline_only` and `artifact_only`: McNemar's
    test with one answer a problem, the sign test with several."""


def compare_paired(
    baseline_scores: Sequence[float],
    artifact_scores: Sequence[float],
    *,
    samples: int,
    seed: int = 0,
) -> PairedAccuracy:
    """Compare scores on the same problems in the same order.

    A score is the share of a problem's `samples` answers that are correct. `seed` is the
    bootstrap's.
    """
    baseline_N = np.asarray(baseline_scores, np.float64)
    artifact_N = np.asarray(artifact_scores, np.float64)
    assert baseline_N.shape == artifact_N.shape
    assert len(baseline_N) > 0
    # Whole numbers of answers: a difference of shares would not cancel to zero exactly.
    wins_N = np.rint(samples * baseline_N) - np.rint(samples * artifact_N)
    differences_N = wins_N / samples
    n, b, c = len(wins_N), int((wins_N > 0).sum()), int((wins_N < 0).sum())
    levels = levels_for(samples)
    if samples == 1:
        low, high = tango_interval(b, c, n, levels)
    else:
        low, high = repeated_interval(differences_N, levels)
    bootstrap_low, bootstrap_high = bootstrap_interval(differences_N, seed=seed)
    return PairedAccuracy(
        n=n,
        samples=samples,
        baseline_accuracy=float(baseline_N.mean()),
        artifact_accuracy=float(artifact_N.mean()),
        baseline_interval=accuracy_interval(baseline_N, samples),
        artifact_interval=accuracy_interval(artifact_N, samples),
        baseline_only=b,
        artifact_only=c,
        drop_points=100 * float(differences_N.mean()),
        drop_interval_points=(100 * low, 100 * high),
        bootstrap_interval_points=(100 * bootstrap_low, 100 * bootstrap_high),
        mcnemar_p=sign_test_p(b, c),
    )


def sign_test_p(b: int, c: int) -> float:
    """Exact two-sided p-value of b against c problems that differ."""
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
