"""What quantization does to the reasoning itself, beside right and wrong.

A damaged reasoning model often still knows, but does not come to an end: thoughts that never close,
loops (`loops`), longer answers, other languages (`scripts`). Shares are of all answers of a model.

The length ratio pairs answers of the same problem and the same random stream, both ended by the
model itself; a truncated one has no length. It is the geometric mean of (n_artifact + 1) /
(n_baseline + 1), the end counted as a token, with an interval by Student's t on the logarithms,
standard error clustered by problem (`tokens.clustered_stderr`).

Shape legend: N problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from scipy import stats

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.grading import THINK_END
from tightfit.drift.measures.loops import ends_in_loop, repetition
from tightfit.drift.measures.scripts import mixes_languages
from tightfit.drift.measures.tokens import clustered_stderr
from tightfit.drift.statistics.intervals import STATED_ERROR
from tightfit.runtimes.results import StopReason

CONFIDENCE: Final = 1 - 2 * STATED_ERROR
"""Of the length ratio's interval, two-sided: 90 %, as of every other interval."""


class LengthUnit(StrEnum):
    """What lengths are counted in."""

    TOKENS = "tokens"
    WORDS = "words"
    """Between white space: where a runtime gives only text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningHealth:
    """One model's answers; shares are of all answers, 0 to 1."""

    n_answers: int
    unclosed: float
    """Thoughts that never close: no `</think>`."""
    truncated: float
    """Ended by the token limit or the context."""
    looping: float
    """Answers that end in a loop."""
    repetition: float
    """Mean share of repeated n-grams in an answer."""
    mixing: float
    """Answers with letters of a script that neither the problem nor mathematics uses."""
    mean_tokens: float
    """Mean length, in `length_unit`."""
    length_unit: LengthUnit = LengthUnit.TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning:
    """Both models on the same problems."""

    baseline: ReasoningHealth
    artifact: ReasoningHealth
    length_ratio: float | None
    """Geometric mean over answers of artifact's length by baseline's, where both ended by
    themselves; None when that is none."""
    length_ratio_interval: tuple[float, float] | None
    """Two-sided 90 %; None for fewer than two problems."""


def compare_reasoning(
    baseline: ModelAnswers, artifact: ModelAnswers, problems: Sequence[Problem]
) -> Reasoning:
    """Both models' answers to `problems`, lengths in words where either gives only text."""
    assert baseline.n_problems == artifact.n_problems
    assert baseline.samples == artifact.samples
    unit = length_unit(baseline, artifact)
    ratio, interval = _length_ratio(baseline, artifact, unit)
    return Reasoning(
        baseline=assess(baseline, problems, unit),
        artifact=assess(artifact, problems, unit),
        length_ratio=ratio,
        length_ratio_interval=interval,
    )


def assess(
    answers: ModelAnswers, problems: Sequence[Problem], unit: LengthUnit | None = None
) -> ReasoningHealth:
    """The answers of one model to `problems`, at least one; lengths in tokens where it has them."""
    assert answers.n_problems == len(problems) > 0
    unit = unit or length_unit(answers)
    given = answers.answers

    def share(found: Sequence[bool]) -> float:
        return sum(found) / len(given)

    return ReasoningHealth(
        n_answers=len(given),
        unclosed=share([THINK_END not in answer.text for answer in given]),
        truncated=share([answer.stop is not StopReason.END for answer in given]),
        looping=share([ends_in_loop(answer.text) for answer in given]),
        repetition=sum(repetition(answer.text) for answer in given) / len(given),
        mixing=share(
            [mixes_languages(answer.text, problems[answer.problem].problem) for answer in given]
        ),
        mean_tokens=sum(_length(answer, unit) for answer in given) / len(given),
        length_unit=unit,
    )


def length_unit(*models: ModelAnswers) -> LengthUnit:
    """Tokens where every answer has them: an endpoint gives text, and one unit serves all."""
    known = all(answer.token_ids or not answer.text for each in models for answer in each.answers)
    return LengthUnit.TOKENS if known else LengthUnit.WORDS


def _length(answer: Answer, unit: LengthUnit) -> int:
    return len(answer.token_ids) if unit is LengthUnit.TOKENS else len(answer.text.split())


def _length_ratio(
    baseline: ModelAnswers, artifact: ModelAnswers, unit: LengthUnit
) -> tuple[float | None, tuple[float, float] | None]:
    sums, counts = [], []
    for problem in range(baseline.n_problems):
        logs = [
            np.log((_length(other, unit) + 1) / (_length(one, unit) + 1))
            for one, other in zip(baseline.of(problem), artifact.of(problem), strict=True)
            if one.stop is other.stop is StopReason.END
        ]
        if logs:
            sums.append(sum(logs))
            counts.append(len(logs))
    if not counts:
        return None, None
    sums_N, counts_N = np.array(sums, np.float64), np.array(counts, np.float64)
    mean = sums_N.sum() / counts_N.sum()
    stderr = clustered_stderr(sums_N, counts_N)
    if stderr is None:
        return float(np.exp(mean)), None
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(counts) - 1)) * stderr
    return float(np.exp(mean)), (float(np.exp(mean - reach)), float(np.exp(mean + reach)))
