"""Results in the layout of EleutherAI's lm-evaluation-harness, which existing viewers open.

    FOLDER/MODEL/results_DATE.json          figures of a model
    FOLDER/MODEL/samples_TASK_DATE.jsonl    its answers, a line a problem

for the baseline and for the artifact, as version 0.4.13 writes them with `--log_samples`:
`EvaluationTracker` names the files and folders, `result_schema.py` the fields, and hashes are
SHA-256 of the same strings. Differences, because the harness did not run:

* `lm_eval_version`, `transformers_version` and the time it took are absent; `tightfit_version` says
  who wrote it, and the task's name begins with `tightfit_`, since the harness's own tasks prompt
  and grade in another way;
* `exact_match` of a problem is the share of its answers that are correct, with all of them in
  `resps`; `grades` and `stops` say of each what it is worth and why it ended;
* token-level drift is added as metrics of the artifact.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Final, Literal

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.protocol import Protocol
from tightfit.drift.report import DriftReport
from tightfit.files import write_text_whole

Side = Literal["baseline", "artifact"]

METRIC: Final = "exact_match"
FILTER: Final = "none"
"""The whole response is what is graded; a metric's key is `METRIC,FILTER`."""
UNKNOWN_ERROR: Final = "N/A"
"""The harness's own mark of a standard error that cannot be computed."""
BASELINE_SOURCE: Final = "hf"
"""The harness's name for checkpoints that `transformers` loads."""

_UNSAFE: Final = re.compile(r"[\"<>:/|\\?*\[\]]+")


def write_lm_eval(
    folder: Path,
    report: DriftReport,
    *,
    problems: Sequence[Problem],
    prompts: Sequence[str],
    baseline: ModelAnswers,
    artifact: ModelAnswers,
    date: datetime,
) -> tuple[Path, ...]:
    """Write results and samples of both models and return their paths.

    `prompts` are what the models were given, in the order of `problems`; `date` has a time zone.
    Raises `ArtifactError` where a file and `OSError` where a folder cannot be written.
    """
    stamp = date.astimezone(UTC).replace(tzinfo=None).isoformat().replace(":", "-")
    written = []
    sides: tuple[tuple[Side, ModelAnswers], ...] = (("baseline", baseline), ("artifact", artifact))
    for side, answers in sides:
        samples = sample_documents(report.protocol, problems, prompts, answers)
        results = results_document(report, side, answers, samples=samples, date=date)
        place = folder / sanitized(model_name(report, side))
        place.mkdir(parents=True, exist_ok=True)
        results_path = place / f"results_{stamp}.json"
        samples_path = place / f"samples_{task_name(report)}_{stamp}.jsonl"
        write_text_whole(results_path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        # ASCII only: some readers end a line at U+2028 or U+0085, which JSON may hold as they are.
        write_text_whole(samples_path, "".join(json.dumps(sample) + "\n" for sample in samples))
        written += [results_path, samples_path]
    return tuple(written)


def results_document(
    report: DriftReport,
    side: Side,
    answers: ModelAnswers,
    *,
    samples: Sequence[Mapping[str, Any]],
    date: datetime,
) -> dict[str, Any]:
    """The content of `results_DATE.json`; `samples` are those of the same answers."""
    task, name = task_name(report), model_name(report, side)
    figures = dict(_figures(report, side, answers))
    metrics: dict[str, Any] = {"alias": task, "sample_len": answers.n_problems}
    for metric, (value, error, _) in figures.items():
        metrics[f"{metric},{FILTER}"] = value
        metrics[f"{metric}_stderr,{FILTER}"] = UNKNOWN_ERROR if error is None else error
    source = BASELINE_SOURCE if side == "baseline" else report.artifact.format
    return {
        "results": {task: metrics},
        "group_subtasks": {task: []},
        "configs": {task: _task_config(report)},
        "versions": {task: report.versions["grading"]},
        "n-shot": {task: 0},
        "higher_is_better": {task: {metric: better for metric, (_, _, better) in figures.items()}},
        "n-samples": {task: {"original": report.data.n_problems, "effective": answers.n_problems}},
        "config": {"model": source, **_model_config(report, side)},
        "git_hash": None,
        "date": date.timestamp(),
        "pretty_env_info": _runtime(report, side),
        "tightfit_version": report.tightfit_version,
        "upper_git_hash": None,
        "task_hashes": {task: task_hash(samples)},
        "model_source": source,
        "model_name": name,
        "model_name_sanitized": sanitized(name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
    }


def sample_documents(
    protocol: Protocol,
    problems: Sequence[Problem],
    prompts: Sequence[str],
    answers: ModelAnswers,
) -> list[dict[str, Any]]:
    """The lines of `samples_TASK_DATE.jsonl`, one a problem that was answered."""
    assert len(prompts) == len(problems) >= answers.n_problems
    settings = _generation_settings(protocol)
    return [
        _sample(index, problems[index], prompts[index], settings, answers.of(index), score)
        for index, score in enumerate(answers.scores)
    ]


def task_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """The hash of a task: equal where documents, prompts and targets are."""
    return _sha256(
        "".join(
            sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples
        )
    )


def task_name(report: DriftReport) -> str:
    """`tightfit_` and the source of the problems, without what a file name or a viewer minds."""
    return "tightfit_" + re.sub(r"\W+", "_", PurePath(report.data.source).stem)


def model_name(report: DriftReport, side: Side) -> str:
    """The baseline's id, and for the artifact its file's name behind it: many are `model.onnx`."""
    if side == "baseline":
        return report.baseline.id
    return f"{report.baseline.id}/{report.artifact.name}"


def sanitized(name: str) -> str:
    """The name of a model's folder."""
    return _UNSAFE.sub("__", name)


def _sample(
    index: int,
    problem: Problem,
    prompt: str,
    settings: Mapping[str, Any],
    answers: Sequence[Answer],
    score: float,
) -> dict[str, Any]:
    document = dict(problem.original)
    texts = [answer.text for answer in answers]
    return {
        "doc_id": index,
        "doc": document,
        "target": problem.answer,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": settings}},
        "resps": [texts],
        "filtered_resps": texts if len(texts) == 1 else [texts],
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": _sha256(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(prompt),
        "target_hash": _sha256(problem.answer),
        METRIC: score,
        "grades": [answer.grade.value for answer in answers],
        "stops": [answer.stop.value for answer in answers],
    }


def _figures(
    report: DriftReport, side: Side, answers: ModelAnswers
) -> Iterator[tuple[str, tuple[float, float | None, bool]]]:
    """Metrics with value, standard error and whether higher is better."""
    scores, tokens = answers.scores, report.tokens
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
    yield METRIC, (statistics.fmean(scores), error, True)
    if tokens is None:
        return
    if side == "baseline":
        yield "token_perplexity", (tokens.baseline_perplexity, None, False)
        return
    yield "token_perplexity", (tokens.artifact_perplexity, None, False)
    yield "kl_mean_nats", (tokens.kl_mean_nats, tokens.kl_mean_stderr_nats, False)
    yield "top1_agreement", (tokens.top1_agreement, tokens.top1_agreement_stderr, True)


def _generation_settings(protocol: Protocol) -> dict[str, Any]:
    return {
        "until": [],
        "do_sample": protocol.temperature > 0,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "max_gen_toks": protocol.max_tokens,
    }


def _task_config(report: DriftReport) -> dict[str, Any]:
    protocol = report.protocol
    return {
        "task": task_name(report),
        "dataset_path": report.data.source,
        "test_split": "test",
        "doc_to_text": f"{{{{problem}}}}\n{protocol.instruction}",
        "doc_to_target": "{{answer}}",
        "description": "",
        "target_delimiter": "",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": 0,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "output_type": "generate_until",
        "generation_kwargs": _generation_settings(protocol),
        "repeats": protocol.samples,
        "should_decontaminate": False,
        "gen_prefix": protocol.forced_opening,
        "metadata": {
            "version": report.versions["grading"],
            "subset": report.data.subset,
            "subset_sha256": report.data.sha256,
            "definitions": dict(report.versions),
        },
    }


def _model_config(report: DriftReport, side: Side) -> dict[str, Any]:
    baseline, artifact, protocol = report.baseline, report.artifact, report.protocol
    arguments: dict[str, Any] = {"pretrained": baseline.id, "revision": baseline.revision}
    if side == "artifact":
        arguments |= {
            "file": artifact.name,
            "scheme": artifact.scheme,
            "bits_per_weight": artifact.bits_per_weight,
            "sha256": artifact.sha256,
        }
    return {
        "model_args": {**arguments, "runtime": _runtime(report, side)},
        "model_revision": baseline.revision,
        "batch_size": None,
        "batch_sizes": [],
        "device": report.runtime.device if side == "artifact" else None,
        "use_cache": None,
        "limit": None,
        "bootstrap_iters": 0,
        "gen_kwargs": _generation_settings(protocol),
        "random_seed": protocol.seed,
        "numpy_seed": protocol.seed,
        "torch_seed": protocol.seed,
        "fewshot_seed": protocol.seed,
    }


def _runtime(report: DriftReport, side: Side) -> str:
    return report.runtime.label if side == "artifact" else report.baseline.runtime


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
