"""Problems that one model solved and the other did not, for people to read."""

from collections.abc import Sequence

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.grading import Grade
from tightfit.drift.report import Flip

MAX_FLIPS = 10
"""Each way."""


def flips(
    problems: Sequence[Problem], baseline: ModelAnswers, artifact: ModelAnswers
) -> tuple[Flip, ...]:
    """At most `MAX_FLIPS` examples each way, lost ones first, with an answer of each kind."""
    scores = list(zip(baseline.scores, artifact.scores, strict=True))
    lost = [number for number, (before, after) in enumerate(scores) if before > after]
    won = [number for number, (before, after) in enumerate(scores) if before < after]
    return tuple(
        _flip(problems[number], baseline.of(number), artifact.of(number), lost=number in lost)
        for number in lost[:MAX_FLIPS] + won[:MAX_FLIPS]
    )


def _flip(
    problem: Problem, baseline: Sequence[Answer], artifact: Sequence[Answer], *, lost: bool
) -> Flip:
    before, after = _example(baseline, solved=lost), _example(artifact, solved=not lost)
    return Flip(
        unique_id=problem.unique_id,
        problem=problem.problem,
        gold=problem.answer,
        lost=lost,
        baseline_grade=before.grade.value,
        baseline_text=before.text,
        artifact_grade=after.grade.value,
        artifact_text=after.text,
    )


def _example(answers: Sequence[Answer], *, solved: bool) -> Answer:
    """The first answer that is right, or that is not; the score says that there is one."""
    return next(answer for answer in answers if (answer.grade is Grade.CORRECT) is solved)
