"""What a model answered, and what each answer is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.drift.grading import Grade
from tightfit.runtimes.results import StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One graded completion."""

    problem: int
    """Index in the subset."""
    sample: int
    """0 to `Protocol.samples` - 1."""
    token_ids: tuple[int, ...]
    """Generated tokens, without the prompt and the end token; empty where the runtime gives only
    text."""
    text: str
    """Behind the forced opening, `</think>` written out."""
    stop: StopReason
    grade: Grade


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelAnswers:
    """All answers of one model to a subset, ordered by problem, then sample."""

    samples: int
    """Answers to each problem."""
    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        """The order is what everything below rests on."""
        assert all(
            (answer.problem, answer.sample) == divmod(index, self.samples)
            for index, answer in enumerate(self.answers)
        )

    @property
    def n_problems(self) -> int:
        """Problems answered."""
        return len(self.answers) // self.samples

    def of(self, problem: int) -> Sequence[Answer]:
        """The answers to one problem."""
        return self.answers[problem * self.samples : (problem + 1) * self.samples]

    @property
    def scores(self) -> tuple[float, ...]:
        """Share of correct answers of each problem, 0 to 1."""
        return tuple(
            sum(answer.grade is Grade.CORRECT for answer in self.of(problem)) / self.samples
            for problem in range(self.n_problems)
        )

    def count(self, grade: Grade) -> int:
        """Answers with this grade."""
        return sum(answer.grade is grade for answer in self.answers)
