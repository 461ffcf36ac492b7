"""The whole measurement: a baseline, one or several artifacts, a report for each.

All models answer the same problems in the same seeded order, and what the baseline costs is spent
once for all artifacts, or never where a kept baseline has it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from tightfit.drift.answers import ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.data.subset import Subset, load_subset, parse_spec
from tightfit.drift.grading import Grade, Grader, require_grader
from tightfit.drift.measures.reasoning import compare_reasoning
from tightfit.drift.measures.tokens import TokenDrift, TokenTable
from tightfit.drift.measures.versions import VERSIONS
from tightfit.drift.report import (
    SCHEMA_VERSION,
    BaselineFacts,
    DataFacts,
    DriftReport,
)
from tightfit.pipeline.drift.baseline import Baseline
from tightfit.pipeline.drift.examples import flips
from tightfit.pipeline.drift.measurement import Measurement
from tightfit.pipeline.drift.request import DriftRequest
from tightfit.pipeline.drift.subjects import (
    find_subjects,
    record_reports,
    warn_of_another_baseline,
)
from tightfit.pipeline.drift.verdict import Measured, measure_all, measure_until_decided
from tightfit.reporter import Reporter


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftResult:
    """One artifact's report, and the answers that it rests on."""

    report: DriftReport
    problems: tuple[Problem, ...]
    """Those that both models answered, in the order in which they were visited."""
    prompts: tuple[str, ...]
    """What the models were given, one a problem."""
    baseline: ModelAnswers
    artifact: ModelAnswers


def ignore_results(_results: Sequence[DriftResult]) -> None:
    """Deliver nothing."""


def run_drift(
    request: DriftRequest,
    reporter: Reporter,
    deliver: Callable[[Sequence[DriftResult]], None] = ignore_results,
) -> tuple[DriftResult, ...]:
    """Measure the drift of artifacts and judge each; the reports go into their manifest.

    `deliver` takes the results before the work that they could be resumed from is dropped.

    Raises `ArtifactError`, `CheckpointError`, `DriftError`, `MissingPackageError`,
    `RuntimeFailureError` and `UsageError`.
    """
    require_grader()
    subjects = find_subjects(request, reporter)
    reporter.stage("Reading the problems and the baseline")
    visited = chosen_subset(request)
    results, finished = [], []
    measure = measure_until_decided if request.sequential else measure_all
    with Grader() as grader, Baseline(request, visited, grader, reporter) as baseline:
        identity = baseline.record.identity
        warn_of_another_baseline(request.artifact, identity.model, identity.revision, reporter)
        if baseline.lacks_answers:  # hours, before which an artifact that does not run is refused
            for subject in subjects:
                with Measurement(subject, baseline, grader, reporter):
                    pass
        if not request.sequential:
            baseline.complete()
        for subject in subjects:
            reporter.stage(f"Measuring {subject.facts.name}")
            with Measurement(subject, baseline, grader, reporter) as measurement:
                measured = measure(baseline, measurement, request.limits)
            n_answered = measured.baseline.n_problems
            results.append(
                DriftResult(
                    report=_report(request, visited, baseline, measurement, measured),
                    problems=visited.problems[:n_answered],
                    prompts=baseline.prompt_texts(n_answered),
                    baseline=measured.baseline,
                    artifact=measured.artifact,
                )
            )
            finished.append(measurement)
    reports = {result.report.artifact.format: result.report for result in results}
    record_reports(request.artifact, reports, reporter)
    deliver(results)
    for measurement in finished:
        measurement.forget()
    return tuple(results)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptBaseline:
    """What `make_baseline` wrote."""

    model: str
    revision: str | None
    key: str
    n_problems: int
    n_traces: int


def make_baseline(request: DriftRequest, reporter: Reporter) -> KeptBaseline:
    """Compute all that a kept baseline can hold, and write it to `request.baseline_cache`."""
    require_grader()
    assert request.baseline_cache is not None
    reporter.stage("Reading the problems and the baseline")
    visited = chosen_subset(request)
    with Grader() as grader, Baseline(request, visited, grader, reporter) as baseline:
        baseline.complete()
        identity = baseline.record.identity
        return KeptBaseline(
            model=identity.model,
            revision=identity.revision,
            key=identity.key,
            n_problems=len(visited.problems),
            n_traces=len(baseline.traces()),
        )


def chosen_subset(request: DriftRequest) -> Subset:
    """The problems that are asked for, in the seeded order in which they are visited."""
    return load_subset(parse_spec(request.subset, dataset=request.dataset)).shuffled()


def _report(
    request: DriftRequest,
    visited: Subset,
    baseline: Baseline,
    measurement: Measurement,
    measured: Measured,
) -> DriftReport:
    record = baseline.record
    problems = baseline.questions.problems[: measured.baseline.n_problems]
    runtime = measurement.runtime
    return DriftReport(
        schema_version=SCHEMA_VERSION,
        tightfit_version=version("tightfit"),
        versions=dict(VERSIONS),
        command=request.command,
        artifact=dataclasses.replace(
            measurement.subject.facts,
            name=measurement.subject.facts.name if measurement.subject.files else runtime.name,
        ),
        baseline=BaselineFacts(
            id=record.identity.model,
            revision=record.identity.revision,
            content_sha256=record.identity.content_sha256,
            runtime=record.runtime,
            logits=record.logits,
            cached=not baseline.computed,
        ),
        data=DataFacts(
            subset=visited.spec.text,
            source=visited.spec.source,
            n_problems=len(visited.problems),
            sha256=visited.sha256,
        ),
        protocol=record.protocol,
        runtime=runtime.system_info,
        tokens=measured.tokens,
        tokens_absent=measured.tokens_absent,
        noise_floor=_noise_floor(baseline) if measured.tokens else None,
        accuracy=measured.accuracy,
        baseline_grades=_grades(measured.baseline),
        artifact_grades=_grades(measured.artifact),
        reasoning=compare_reasoning(measured.baseline, measured.artifact, problems),
        flips=flips(problems, measured.baseline, measured.artifact),
        limits=request.limits,
        decision=measured.decision,
    )


def _noise_floor(baseline: Baseline) -> TokenDrift:
    """The baseline in one runtime against itself in another."""
    table = TokenTable()
    for number, trace in enumerate(baseline.traces()):
        table.add(number, trace.noise)
    return table.summarize()


def _grades(answers: ModelAnswers) -> dict[str, int]:
    return {grade.value: answers.count(grade) for grade in Grade}
