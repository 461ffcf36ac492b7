"""`tightfit drift`: what the shipped file lost, and whether that is allowed."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import StderrReporter, emit, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.pipeline.drift import DriftReport

EXAMPLES = examples(
    ("drift out --baseline tiny-r1", "the 500 embedded problems, the default limits"),
    ("drift out --baseline r1-distill-qwen-7b --subset math500:n=64,level=4-5,seed=0", "MATH-500"),
    ("drift out --baseline tiny-r1 --max-drop 1 --max-kl 0.01 --json", "for a CI job"),
)
_PERCENT = 100


def drift_command(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `tightfit export` wrote, or a .gguf file.")
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
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of the baseline on the Hub.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what the shipped file lost.

    Runs it in llama.cpp against the unquantized checkpoint: KL divergence, top-1 agreement,
    perplexity, and accuracy problem by problem. Exit status 3 when a limit is exceeded, 5 when the
    sample is too small to tell.
    """
    from tightfit.pipeline.drift import DriftRequest, run_drift

    request = DriftRequest(
        artifact=artifact,
        baseline=baseline,
        revision=revision,
        subset=subset,
        max_drop_points=max_drop,
        max_kl_nats=max_kl,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        device=device,
    )
    report = run_drift(request, StderrReporter())
    emit(asdict(report), *render_drift(report), as_json=as_json)
    raise typer.Exit(report.decision.exit_status)


def render_drift(report: "DriftReport") -> "list[RenderableType]":
    """The report for people: both models side by side, then the distance, then the verdict."""
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
        [
            "accuracy drop",
            (
                f"{accuracy.drop_points:+.2f} points [{accuracy.drop_lower_points:+.2f}, "
                f"{accuracy.drop_upper_points:+.2f}]"
            ),
        ],
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


def _nats(value: float, stderr: float | None = None) -> str:
    error = f" ± {stderr:.1e}" if stderr is not None else ""
    return f"{value:.2e}{error} nats"
