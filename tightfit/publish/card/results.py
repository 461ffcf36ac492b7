"""Accuracies on public benchmarks, in the two forms that the Hub shows.

`.eval_results/*.yaml` is for data sets that the Hub has registered as a benchmark, by the task's
name in their eval.yaml: of ours that is GSM8K. A file about another data set fails the Hub's
validation. The others go into the card's `model-index`, which the Hub still shows.

Source: huggingface.co/docs/hub/eval-results, `huggingface_hub.EvalResultEntry`, modelcard.md of
huggingface/hub-docs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from huggingface_hub import EvalResult, EvalResultEntry

from tightfit.drift.data.sources import SOURCES
from tightfit.drift.data.subset import parse_spec
from tightfit.drift.report import DriftReport, from_fields
from tightfit.export.manifest import Artifact, Manifest
from tightfit.publish.card import numerals

TASKS: Final[Mapping[str, str]] = {"gsm8k": "gsm8k"}
"""Source to the task's name in the eval.yaml of its registered benchmark."""
_NAMES: Final[Mapping[str, str]] = {"math500": "MATH-500", "aime24": "AIME 2024", "gsm8k": "GSM8K"}
_PERCENT_DECIMALS: Final = 2
_Measured = tuple[Artifact, DriftReport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The reports of a manifest, by what they are worth."""

    measured: tuple[_Measured, ...]
    outdated: tuple[Artifact, ...]
    """Measured on a file that is not the one here: the figures say nothing of this one."""
    missing: tuple[Artifact, ...]


def read_drift(manifest: Manifest) -> Drift:
    """All drift reports; raises `DriftError` for a damaged one or one of another version."""
    measured: list[_Measured] = []
    outdated, missing = [], []
    for artifact in manifest.artifacts:
        if artifact.drift is None:
            missing.append(artifact)
            continue
        report = from_fields(artifact.drift, f"the manifest ({artifact.format})")
        if report.artifact.is_of(artifact):
            measured.append((artifact, report))
        else:
            outdated.append(artifact)
    return Drift(measured=tuple(measured), outdated=tuple(outdated), missing=tuple(missing))


def index_results(drift: Drift) -> list[EvalResult]:
    """Entries of `model-index`: benchmarks that the Hub has not registered."""
    results = []
    for artifact, report in drift.measured:
        source = _public_source(report)
        if source is None or source in TASKS:
            continue
        data = SOURCES[source]
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=data.hub_id,
                dataset_name=_NAMES[source],
                dataset_config=data.config,
                dataset_split=data.split,
                metric_type="accuracy",
                metric_value=_percent(report),
                metric_name=f"accuracy in percent: {_setup(artifact, report)}",
            )
        )
    return results


def registered_results(drift: Drift, repo: str) -> dict[str, list[EvalResultEntry]]:
    """Entries of `.eval_results/NAME.yaml`, by NAME."""
    results: dict[str, list[EvalResultEntry]] = {}
    for artifact, report in drift.measured:
        source = _public_source(report)
        if source is None or source not in TASKS:
            continue
        entry = EvalResultEntry(
            dataset_id=SOURCES[source].hub_id,
            task_id=TASKS[source],
            value=_percent(report),
            source_url=f"https://huggingface.co/{repo}",
            source_name="Model card",
            notes=_setup(artifact, report),
        )
        results.setdefault(source, []).append(entry)
    return results


def _public_source(report: DriftReport) -> str | None:
    """The known benchmark that was asked; None: another data set, a file, or a part of one.

    A sequential test stops where a limit is decided, so its accuracy is no result.
    """
    if report.accuracy.n != report.data.n_problems:
        return None
    asked = parse_spec(report.data.subset).source
    by_id = {source.hub_id: name for name, source in SOURCES.items()}
    return asked if asked in SOURCES else by_id.get(asked)


def _percent(report: DriftReport) -> float:
    return round(100 * report.accuracy.artifact_accuracy, _PERCENT_DECIMALS)


def _setup(artifact: Artifact, report: DriftReport) -> str:
    """What was asked of what, and how far the figure may be off."""
    accuracy, protocol = report.accuracy, report.protocol
    spec = parse_spec(report.data.subset)
    whole = spec.n is None and spec.levels is None and spec.subject is None
    asked = "all problems" if whole else f"subset {report.data.subset}"
    low, high = accuracy.artifact_interval
    return (
        f"{artifact.files[0].name} in {report.runtime.label}; {asked} "
        f"(n={accuracy.n}), {numerals.count(accuracy.samples, 'answer')} each, temperature "
        f"{protocol.temperature:g}, top-p {protocol.top_p:g}, seed {protocol.seed}, at most "
        f"{protocol.max_tokens} tokens; 90 % interval {100 * low:.1f} to {100 * high:.1f}"
    )
