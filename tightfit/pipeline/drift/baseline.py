"""The baseline: its answers and traces, from what was kept or, where that lacks some, the model.

The unquantized checkpoint answers as a lossless GGUF in llama.cpp. The log-probabilities of its
traces come from transformers, block by block, so that an error of a conversion shows as drift.
The distance between those two runtimes on the same weights is the noise floor.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tightfit.drift.answers import ModelAnswers
from tightfit.drift.data.subset import Subset
from tightfit.drift.grading import Grader
from tightfit.drift.measures.tokens import TokenSample, compare_sample
from tightfit.errors import DriftError
from tightfit.pipeline.drift import kept
from tightfit.pipeline.drift.answering import Questions, answer, collected, missing
from tightfit.pipeline.drift.finding import find_baseline
from tightfit.pipeline.drift.journal import NAME, Journal
from tightfit.pipeline.drift.original import RUNTIME, Original
from tightfit.pipeline.drift.request import DriftRequest
from tightfit.pipeline.drift.traces import MAX_TRACES, Trace, read_trace, trace_of, write_trace
from tightfit.reporter import Reporter
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.tokenizer import FolderTokenizer


class Baseline:
    """Answers and traces of the unquantized checkpoint; use it in a `with`."""

    def __init__(
        self, request: DriftRequest, subset: Subset, grader: Grader, reporter: Reporter
    ) -> None:
        """Find what was kept, or open the checkpoint.

        `subset` is in the order in which problems are visited. Raises `CheckpointError`,
        `DriftError` and `UsageError`.
        """
        self._file = request.baseline_cache
        self._grader = grader
        self._reporter = reporter
        self._original = Original(request)
        self._folder, self.record = find_baseline(request, subset, self._original, reporter)
        self.questions = Questions(
            problems=subset.problems,
            prompts=self.record.prompts,
            protocol=self.record.protocol,
        )
        self._journal = Journal(self._folder / NAME)
        self._traces: list[Trace] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._original.close()
        if error is None or isinstance(error, Exception):
            self.keep()  # what was computed outlives an artifact that fails

    @property
    def computed(self) -> bool:
        """Whether the model itself had to run."""
        return self._original.has_run

    @property
    def lacks_answers(self) -> bool:
        """Whether the model has to answer problems."""
        return bool(missing(self._journal, self.questions, len(self.questions.problems)))

    @property
    def tokenizer_folder(self) -> Path:
        """A folder with the checkpoint's tokenizer."""
        return self._folder / kept.TOKENIZER

    def answers(self, n_problems: int) -> ModelAnswers:
        """Graded answers to the first problems."""
        wanted = missing(self._journal, self.questions, n_problems)
        if wanted:
            self._reporter.stage(f"Solving {n_problems} problems with the baseline")
            answer(
                self._runtime(), wanted, self.questions, self._journal, self._grader, self._reporter
            )
        return collected(self._journal, self.questions, n_problems)

    def prompt_texts(self, n_problems: int) -> tuple[str, ...]:
        """What the models are given for the first problems, special tokens written out."""
        tokenizer = FolderTokenizer(self.tokenizer_folder)
        return tuple(map(tokenizer.decode, self.questions.prompts[:n_problems]))

    def traces(self) -> list[Trace]:
        """The traces that token drift is measured on: of the first `MAX_TRACES` problems."""
        if self._traces is None:
            self._traces = self._read_traces()
        return self._traces

    def complete(self) -> None:
        """Compute everything that is missing, and end the model's process."""
        self.answers(len(self.questions.problems))
        self.traces()
        self._original.close()
        self.keep()

    def keep(self) -> None:
        """Write the baseline file, when one was asked for and it lacks something."""
        if self._file is not None and not kept.is_packed(self._folder, self._file):
            kept.pack(self._folder, self._file)
            self._reporter.info(f"baseline kept in {self._file}")

    def _read_traces(self) -> list[Trace]:
        n_problems = min(MAX_TRACES, len(self.questions.problems))
        answers = self.answers(n_problems)
        found = (
            trace_of(self.questions.prompts[number], answers.of(number)[0])
            for number in range(n_problems)
        )
        samples = [sample for sample in found if sample is not None]
        if not samples:
            raise DriftError(
                f"the baseline answered none of {n_problems} problems with a single token",
                hint="it may be another kind of model: try its chat template by hand",
            )
        pairs = [(kept.trace_path(self._folder, sample), sample) for sample in samples]
        lacking = [pair for pair in pairs if not pair[0].exists()]
        if lacking:
            self._compute_traces(lacking)
        return [read_trace(path, sample) for path, sample in pairs]

    def _runtime(self) -> LlamaCpp:
        """The model, with a word where the kept part comes from other software."""
        then = (self.record.runtime, self.record.logits)
        now = (RUNTIME, self._original.logits_label)
        if then != now and not self.computed:
            self._reporter.warning(
                f"the kept baseline was computed by {' and '.join(then)}; what it lacks is "
                f"computed by {' and '.join(now)}"
            )
        return self._original.runtime(self.questions.context_tokens)

    def _compute_traces(self, lacking: Sequence[tuple[Path, TokenSample]]) -> None:
        runtime = self._runtime()
        self._reporter.stage(f"Reading {len(lacking)} of the baseline's own traces")
        samples = [sample for _, sample in lacking]
        steps = self._original.n_blocks + len(lacking)
        with self._reporter.progress(steps, "blocks and traces of the baseline") as progress:
            distributions = self._original.logprobs(samples, progress.advance)
            for (path, sample), logprobs in zip(lacking, distributions, strict=True):
                write_trace(path, logprobs, compare_sample(logprobs, sample, runtime))
                progress.advance(1)
