"""A model's answers to problems: what the journal has, and the rest generated and graded."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.grading import Completion, Grade, Grader
from tightfit.drift.protocol import Protocol
from tightfit.pipeline.drift.journal import Journal
from tightfit.reporter import Reporter
from tightfit.runtimes.base import PARALLEL_SEQUENCES, Generator
from tightfit.runtimes.results import Generation

KV_BUDGET_BYTES = 2 << 30
"""KV cache of all answers under way; fewer run in parallel when the context is long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What every model is asked, in the order in which problems are visited."""

    problems: tuple[Problem, ...]
    prompts: tuple[tuple[int, ...], ...]
    """Token ids up to where the reasoning begins."""
    protocol: Protocol

    @property
    def context_tokens(self) -> int:
        """Room for the longest prompt and its answer."""
        return max(map(len, self.prompts)) + self.protocol.max_tokens

    def pairs(self, n_problems: int) -> list[tuple[int, int]]:
        """Problem and sample of every answer to the first problems."""
        return [
            (problem, sample)
            for problem in range(n_problems)
            for sample in range(self.protocol.samples)
        ]


def missing(journal: Journal, questions: Questions, n_problems: int) -> list[tuple[int, int]]:
    """The answers to the first problems that the journal lacks."""
    return [pair for pair in questions.pairs(n_problems) if journal.get(*pair) is None]


def collected(journal: Journal, questions: Questions, n_problems: int) -> ModelAnswers:
    """All answers to the first problems, from the journal."""
    found = [journal.get(*pair) for pair in questions.pairs(n_problems)]
    answers = tuple(answer for answer in found if answer is not None)
    assert len(answers) == len(found)
    return ModelAnswers(samples=questions.protocol.samples, answers=answers)


def answer(
    model: Generator,
    wanted: Sequence[tuple[int, int]],
    questions: Questions,
    journal: Journal,
    grader: Grader,
    reporter: Reporter,
) -> None:
    """Generate and grade the wanted answers into the journal, each as soon as it is there."""
    protocol = questions.protocol
    grading: list[Future[None]] = []
    with reporter.progress(len(wanted), f"answers of {model.name}") as progress:

        def take(index: int, made: Generation) -> None:
            for each in grading:
                if each.done():  # a full disk, a grader that cannot start: now, not in hours
                    each.result()
            problem, sample = wanted[index]
            gold = questions.problems[problem].answer
            completion = Completion(text=made.text, finished=made.finished, gold=gold)
            grading.append(
                _then_append(
                    grader.submit(completion), journal, problem=problem, sample=sample, made=made
                )
            )
            progress.advance(1)

        try:
            model.generate(
                [questions.prompts[problem] for problem, _ in wanted],
                max_tokens=protocol.max_tokens,
                temperature=protocol.temperature,
                top_p=protocol.top_p,
                seed=protocol.seed,
                streams=[protocol.stream(*pair) for pair in wanted],
                parallel=_parallel(model, len(wanted)),
                on_finished=take,
            )
        finally:
            # A runtime that dies, or Ctrl-C, must not lose what was answered before.
            wait(grading)
        for each in grading:
            each.result()


def _then_append(
    graded: "Future[Grade]", journal: Journal, *, problem: int, sample: int, made: Generation
) -> "Future[None]":
    """A future that is done when the graded answer lies in the journal."""
    appended: Future[None] = Future()

    def append(future: "Future[Grade]") -> None:
        try:
            journal.append(
                Answer(
                    problem=problem,
                    sample=sample,
                    token_ids=made.token_ids,
                    text=made.text,
                    stop=made.stop,
                    grade=future.result(),
                )
            )
        except BaseException as error:
            appended.set_exception(error)
        else:
            appended.set_result(None)

    graded.add_done_callback(append)
    return appended


def _parallel(model: Generator, n_wanted: int) -> int:
    fitting = KV_BUDGET_BYTES // max(1, model.system_info.kv_bytes)
    return max(1, min(PARALLEL_SEQUENCES, fitting, n_wanted))
