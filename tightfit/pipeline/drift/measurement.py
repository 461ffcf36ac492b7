"""One artifact: its answers and its tokens, against the baseline's.

What is measured lies in a work folder until the report is made, so that an interrupted run goes on
where it was. The folder belongs to the artifact's bytes, its runtime and the baseline.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tightfit.drift.answers import ModelAnswers
from tightfit.drift.grading import Grader
from tightfit.drift.measures.tokens import TokenDrift, TokenTable, compare_sample
from tightfit.errors import DriftError, LogprobsUnavailableError, RuntimeFailureError
from tightfit.files import whole_file
from tightfit.pipeline.drift import kept
from tightfit.pipeline.drift.answering import Questions, answer, collected, missing
from tightfit.pipeline.drift.baseline import Baseline
from tightfit.pipeline.drift.identity import files_sha256
from tightfit.pipeline.drift.journal import NAME, Journal
from tightfit.pipeline.drift.subjects import Subject
from tightfit.pipeline.drift.traces import Trace, tokens_key
from tightfit.reporter import Reporter
from tightfit.runtimes.base import Generator


class Measurement:
    """An artifact under measurement; use it in a `with`."""

    def __init__(
        self, subject: Subject, baseline: Baseline, grader: Grader, reporter: Reporter
    ) -> None:
        """Run the artifact; raises what its runtime does, and `DriftError` for other tokens."""
        self.subject = subject
        self.questions: Questions = baseline.questions
        self._grader = grader
        self._reporter = reporter
        self.runtime = subject.open(self.questions.context_tokens, baseline.tokenizer_folder)
        try:
            _check_tokenizer(self.runtime, baseline, reporter)
            self._folder = kept.cache_folder() / "runs" / self._key(baseline)
            self._journal = Journal(self._folder / NAME)
            self._resumed = self._journal.n_answers
        except BaseException:
            self.runtime.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runtime.close()

    def answers(self, n_problems: int) -> ModelAnswers:
        """Graded answers to the first problems."""
        wanted = missing(self._journal, self.questions, n_problems)
        if self._resumed:
            self._reporter.info(
                f"{self._resumed} answers of an interrupted run are taken from {self._folder}"
            )
            self._resumed = 0
        if wanted:
            answer(
                self.runtime, wanted, self.questions, self._journal, self._grader, self._reporter
            )
        return collected(self._journal, self.questions, n_problems)

    def token_drift(self, traces: Sequence[Trace]) -> tuple[TokenDrift | None, str]:
        """Drift over the traces; None, and why, when the runtime does not give what it takes."""
        table = TokenTable()
        try:
            with self._reporter.progress(len(traces), f"traces of {self.runtime.name}") as progress:
                for number, trace in enumerate(traces):
                    table.add(number, self._rows(trace))
                    progress.advance(1)
        except LogprobsUnavailableError as error:
            if not table.is_empty:  # it did give them: this trace is a failure, no way of working
                raise RuntimeFailureError(
                    f"after some traces {self.runtime.name} gave no more log-probabilities: "
                    f"{error.problem}",
                    hint="look at the server's log; the same command goes on where it was",
                ) from error
            return None, error.problem
        return table.summarize(), ""

    def forget(self) -> None:
        """Drop what was kept to resume: the report is made."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _rows(self, trace: Trace) -> NDArray[np.float64]:
        path = self._folder / f"rows-{tokens_key(trace.sample)}.npy"
        if path.exists():
            return _read_rows(path, len(trace.logprobs))
        rows = compare_sample(trace.logprobs, trace.sample, self.runtime)
        with whole_file(path) as part, part.open("wb") as file:
            np.save(file, rows)
        return rows

    def _key(self, baseline: Baseline) -> str:
        """What an interrupted measurement must share to go on."""
        info = self.runtime.system_info
        parts: list[Any] = [
            baseline.record.identity.key,
            files_sha256(self.subject.files) if self.subject.files else self.subject.facts.name,
            self.runtime.name,
            info.label,
            info.device,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read_rows(path: Path, n_tokens: int) -> NDArray[np.float64]:
    try:
        rows: NDArray[np.float64] = np.load(path, allow_pickle=False)
        if len(rows) != n_tokens:
            raise ValueError(f"{len(rows)} positions, the trace has {n_tokens}")
    except (ValueError, OSError, EOFError) as error:
        raise DriftError(
            f"{path} is damaged: {error}", hint="delete it: it is measured again"
        ) from error
    return rows


def _check_tokenizer(runtime: Generator, baseline: Baseline, reporter: Reporter) -> None:
    """Refuse a baseline whose tokens mean something else to the artifact."""
    record = baseline.record
    read = [(probe.ids, runtime.tokenize(probe.text)) for probe in record.probes]
    if all(theirs is None for _, theirs in read):
        reporter.warning(
            f"{runtime.name} does not tell its tokens: that its tokenizer is the baseline's "
            "cannot be checked"
        )
    same_tokens = all(theirs is None or tuple(theirs) == ours for ours, theirs in read)
    if same_tokens and runtime.vocab_size in (None, record.vocab_size):
        return
    raise DriftError(
        f"{runtime.name} and {record.identity.model} have different tokenizers",
        allowed="the baseline must be the checkpoint that the artifact was made from",
        hint="name that checkpoint with --baseline",
    )
