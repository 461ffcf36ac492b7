"""`tightfit drift`: what the shipped file lost, and whether that is allowed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.options import JsonFlag, chosen_names, examples
from tightfit.cli.output import StderrReporter, emit, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.drift.statistics import PairedAccuracy
    from tightfit.pipeline.drift import DriftReport

EXAMPLES = examples(
    ("drift out --baseline tiny-r1", "the 500 embedded problems, the default limits"),
    ("drift out --baseline tiny-r1 --format onnx", "only the folder's ONNX model"),
    ("drift out --baseline r1-distill-qwen-7b --subset math500:n=64,level=4-5,seed=0", "MATH-500"),
    ("drift out --baseline tiny-r1 --max-drop 1 --max-kl 0.01 --json", "for a CI job"),
)
_PERCENT = 100


def drift_command(
    artifact: Annotated[
        Path,
        typer.Argument(help="Folder that `tightfit export` wrote, or a .gguf or .onnx file."),
    ],
    baseline: Annotated[
        str, typer.Option("--baseline", help="The unquantized checkpoint: name, Hub id or folder.")
    ],
    subset: Annotated[
        str,
        typer.Option("--subset", help="Problems: embedded, math500 or a file, with :n=,level=,..."),
    ] = "embedded",
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0.0, help="Accuracy drop allowed, in points.")
    ] = 2.0,
    max_kl: Annotated[
        float, typer.Option("--max-kl", min=0.0, help="Mean KL divergence allowed, in nats.")
    ] = 0.05,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 is greedy; DeepSeek samples at 0.6.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where transformers runs.")] = "cpu",
    provider: Annotated[
        str, typer.Option("--provider", help="Where onnxruntime runs: cpu, cuda, ...")
    ] = "cpu",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of the baseline on the Hub.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Artifacts of the folder, with commas between. [default: all that run here]",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what the shipped files lost.

    Runs them in llama.cpp, onnxruntime or TensorRT against the unquantized checkpoint: KL
    divergence, top-1 agreement, perplexity, and accuracy problem by problem. Exit status 3 when a
    limit is exceeded, 5 when the sample is too small to tell; of several artifacts the worst.
    """
    from tightfit.drift.gate import worst_exit_status
    from tightfit.pipeline.drift import DriftRequest, run_drift
    from tightfit.targets.formats import FORMATS

    request = DriftRequest(
        artifact=artifact,
        baseline=baseline,
        revision=revision,
        formats=() if formats is None else chosen_names(formats, "--format", tuple(FORMATS)),
        subset=subset,
        max_drop_points=max_drop,
        max_kl_nats=max_kl,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
        provider=provider,
    )
    reports = run_drift(request, StderrReporter())
    emit(
        {"artifacts": [asdict(report) for report in reports]},
        *render_drift(reports),
        as_json=as_json,
    )
    raise typer.Exit(worst_exit_status(report.decision for report in reports))


def render_drift(reports: "Sequence[DriftReport]") -> "list[RenderableType]":
    """The reports for people: everything about a single artifact, a row for each of several."""
    return _render_single(reports[0]) if len(reports) == 1 else _render_several(reports)


def _render_several(reports: "Sequence[DriftReport]") -> "list[RenderableType]":
    first = reports[0]
    title = (
        f"{first.accuracy.n} problems of {first.subset}, {first.tokens.n_tokens} tokens of "
        f"{first.tokens.n_samples} traces; baseline {first.baseline}: "
        + _share(
            first.accuracy.baseline_correct, first.accuracy.n, first.accuracy.baseline_interval
        )
    )
    rows = [
        [
            report.format,
            f"{report.accuracy.artifact_correct / report.accuracy.n:.1%}",
            _drop(report.accuracy),
            _nats(report.tokens.kl_mean_nats, report.tokens.kl_mean_stderr_nats),
            f"{report.tokens.top1_agreement:.2%}",
            report.decision.outcome.upper(),
        ]
        for report in reports
    ]
    columns = ("artifact", "accuracy", "drop", "KL mean", "top-1", "verdict")
    lines = []
    for report in reports:
        lines.append(f"{report.format}: {report.artifact} in {report.runtime.label}")
        lines += [f"  {reason}" for reason in report.decision.reasons]
    return [table(title, columns, rows), *lines]


def _render_single(report: "DriftReport") -> "list[RenderableType]":
    """Both models side by side, then the distance, then the verdict."""
    accuracy, tokens = report.accuracy, report.tokens
    side_by_side = [
        [
            "accuracy",
            _share(accuracy.baseline_correct, accuracy.n, accuracy.baseline_interval),
            _share(accuracy.artifact_correct, accuracy.n, accuracy.artifact_interval),
        ],
        ["perplexity", f"{tokens.baseline_perplexity:.4f}", f"{tokens.artifact_perplexity:.4f}"],
        *(
            [f"answers: {grade}", str(count), str(report.artifact_grades[grade])]
            for grade, count in report.baseline_grades.items()
        ),
    ]
    distance = [
        ["KL mean", _nats(tokens.kl_mean_nats, tokens.kl_mean_stderr_nats)],
        ["KL median", _nats(tokens.kl_median_nats)],
        ["KL 99 %", _nats(tokens.kl_p99_nats)],
        ["KL maximum", _nats(tokens.kl_max_nats)],
        ["top-1 agreement", f"{tokens.top1_agreement:.2%}"],
        ["accuracy drop", _drop(accuracy)],
        [
            "answers that flipped",
            (
                f"{accuracy.only_baseline_correct} lost, {accuracy.only_artifact_correct} won "
                f"(McNemar p {accuracy.mcnemar_p:.2g})"
            ),
        ],
    ]
    title = (
        f"{report.artifact} in {report.runtime.label}, {accuracy.n} problems of {report.subset}, "
        f"{tokens.n_tokens} tokens of {tokens.n_samples} traces"
    )
    return [
        table(title, ("", f"baseline {report.baseline}", "artifact"), side_by_side),
        table("", ("drift", ""), distance),
        f"{report.decision.outcome.upper()}",
        *(f"  {reason}" for reason in report.decision.reasons),
    ]


def _share(correct: int, n: int, interval: tuple[float, float]) -> str:
    low, high = (bound * _PERCENT for bound in interval)
    return f"{correct}/{n} = {correct / n:.1%} [{low:.1f}, {high:.1f}]"


def _drop(accuracy: "PairedAccuracy") -> str:
    return (
        f"{accuracy.drop_points:+.2f} points [{accuracy.drop_lower_points:+.2f}, "
        f"{accuracy.drop_upper_points:+.2f}]"
    )


def _nats(value: float, stderr: float | None = None) -> str:
    error = f" ± {stderr:.1e}" if stderr is not None else ""
    return f"{value:.2e}{error} nats"
