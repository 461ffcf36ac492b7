"""The two measurements: token-level drift on given traces, and paired accuracy on problems.

Every artifact runs in its real runtime, and the baseline runs once for all of them. Token drift is
teacher-forced: all models read the same trace, and only the positions that predict its completion
count. Accuracy lets the models write: DeepSeek's protocol samples at temperature 0.6 and top-p
0.95; greedy decoding (temperature 0) has no sampling noise and is the default for small models.

Shape legend: T tokens (positions), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.grading import Completion, Grade, Grader
from tightfit.drift.metrics import DriftAccumulator, TokenDrift
from tightfit.drift.statistics import PairedAccuracy, compare_paired
from tightfit.drift.subset import Problem
from tightfit.errors import DriftError
from tightfit.runtimes.base import Progress, Runtime, no_progress

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Token ids to float32 logits (T, V) of every position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSample:
    """A trace to be read by both models."""

    tokens: tuple[int, ...]
    """Prompt and completion."""
    first_scored: int
    """Index of the completion's first token: it and all after it are scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How answers are generated."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    parallel: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelAnswers:
    """One model's graded answers."""

    grades: tuple[Grade, ...]
    """One a problem, in the subset's order."""
    token_ids: tuple[tuple[int, ...], ...]
    """What the model wrote."""
    texts: tuple[str, ...]

    def count(self, grade: Grade) -> int:
        """Problems with this grade."""
        return self.grades.count(grade)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each problem was solved."""
        return tuple(grade is Grade.CORRECT for grade in self.grades)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedAnswers:
    """An artifact's answers, and how they compare with the baseline's."""

    answers: ModelAnswers
    paired: PairedAccuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyResult:
    """Paired accuracy and what it was computed from."""

    baseline: ModelAnswers
    artifacts: tuple[ComparedAnswers, ...]
    """In the order in which they were given."""


def measure_token_drift(
    baseline: Logits,
    artifacts: Sequence[Runtime],
    samples: Sequence[TokenSample],
    on_progress: Progress = no_progress,
) -> tuple[TokenDrift, ...]:
    """Drift of each artifact from `baseline` over the completions of `samples`.

    `baseline` is asked once for each sample, in their order.

    Raises `DriftError` when the vocabularies differ, a logit is not finite or nothing is scored.
    """
    accumulators = [DriftAccumulator() for _ in artifacts]
    for number, sample in enumerate(samples):
        baseline_TV = baseline(sample.tokens)
        for artifact, accumulator in zip(artifacts, accumulators, strict=True):
            _compare(baseline_TV, artifact, accumulator, sample, number)
        on_progress(number + 1, len(samples))
    return tuple(accumulator.result() for accumulator in accumulators)


def _compare(
    baseline_TV: NDArray[np.float32],
    artifact: Runtime,
    accumulator: DriftAccumulator,
    sample: TokenSample,
    number: int,
) -> None:
    """Add one sample's scored positions."""
    tokens = np.array(sample.tokens, np.int64)
    # Row t predicts token t + 1; nothing precedes token 0, and nothing follows the last row.
    first_row, end_row = max(sample.first_scored - 1, 0), len(tokens) - 1
    if first_row >= end_row:
        raise DriftError(
            f"sample {number} has {len(tokens)} tokens and none of them to score",
            hint="a trace must hold a completion after its prompt",
        )
    start = 0
    for artifact_TV in artifact.logits_chunks(sample.tokens):
        first, end = max(first_row, start), min(end_row, start + len(artifact_TV))
        if first < end:
            accumulator.update(
                baseline_TV[first:end],
                artifact_TV[first - start : end - start],
                tokens[first + 1 : end + 1],
                sample=number,
            )
        start += len(artifact_TV)


def answer_problems(
    model: Runtime,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    grader: Grader,
    protocol: Protocol,
    on_progress: Progress = no_progress,
) -> ModelAnswers:
    """Generate an answer to every problem and grade it.

    `prompts` are token ids up to where the reasoning begins, one a problem.
    """
    assert len(problems) == len(prompts)
    generations = model.generate(
        prompts,
        max_tokens=protocol.max_tokens,
        temperature=protocol.temperature,
        top_p=protocol.top_p,
        seed=protocol.seed,
        parallel=protocol.parallel,
        on_progress=on_progress,
    )
    grades = grader.grade(
        [
            Completion(text=made.text, finished=made.finished, gold=problem.answer)
            for made, problem in zip(generations, problems, strict=True)
        ]
    )
    return ModelAnswers(
        grades=tuple(grades),
        token_ids=tuple(tuple(made.token_ids) for made in generations),
        texts=tuple(made.text for made in generations),
    )


def measure_accuracy(
    baseline: Runtime,
    artifacts: Sequence[Runtime],
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    protocol: Protocol,
    on_progress: Progress = no_progress,
) -> AccuracyResult:
    """Accuracy of all models on the same problems, each artifact compared with the baseline.

    `baseline` runs a lossless file of the checkpoint. Progress counts the answers of all models.
    """
    models = (baseline, *artifacts)
    answers = []
    with Grader() as grader:
        for number, model in enumerate(models):
            before = number * len(problems)

            def count(completed: int, _total: int, before: int = before) -> None:
                on_progress(before + completed, len(models) * len(problems))

            answers.append(answer_problems(model, problems, prompts, grader, protocol, count))
    first, *others = answers
    return AccuracyResult(
        baseline=first,
        artifacts=tuple(
            ComparedAnswers(answers=each, paired=compare_paired(first.correct, each.correct))
            for each in others
        ),
    )
