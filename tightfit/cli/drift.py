"""`tightfit drift`: what the shipped file lost, and whether that is allowed."""

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.drift_options import (
    Dataset,
    Device,
    MaxTokens,
    ProtocolName,
    Revision,
    Samples,
    Seed,
    SubsetOption,
    Temperature,
    TopP,
    protocol_choice,
)
from tightfit.cli.drift_tables import render_drift
from tightfit.cli.options import JsonFlag, chosen_names, examples
from tightfit.cli.output import StderrReporter, emit, emit_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tightfit.pipeline.drift import DriftResult

EXAMPLES = examples(
    ("drift out --baseline tiny-r1", "the 500 embedded problems, the default limits"),
    ("drift out --baseline r1-distill-qwen-7b --subset math500:n=64,level=4-5,seed=0", "MATH-500"),
    ("drift out --baseline tiny-r1 --sequential --report report", "stop early; a page to read"),
    ("drift out --baseline tiny-r1 --baseline-cache base.zip --junit drift.xml", "for a CI job"),
    ("drift --endpoint http://localhost:8000/v1 --baseline r1-distill-qwen-7b", "of a server"),
    ("drift baseline tiny-r1 -o base.zip", "compute the baseline only, to keep it"),
    ("drift compare a b c --report compare.html", "several measured artifacts side by side"),
)


def drift_command(
    baseline: Annotated[
        str, typer.Option("--baseline", help="The unquantized checkpoint: name, Hub id or folder.")
    ],
    artifact: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that `tightfit export` wrote, a Hugging Face checkpoint, a .gguf or .onnx."
        ),
    ] = None,
    revision: Revision = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="URL of an OpenAI-compatible server, instead of a file."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The endpoint's name of the model.")
    ] = None,
    subset: SubsetOption = None,
    dataset: Dataset = None,
    protocol: ProtocolName = None,
    samples: Samples = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = 0,
    max_drop: Annotated[
        float,
        typer.Option("--max-drop", min=0.0, max=99.0, help="Accuracy drop allowed, in points."),
    ] = 2.0,
    max_kl: Annotated[
        float, typer.Option("--max-kl", min=0.0, help="Mean KL divergence allowed, in nats.")
    ] = 0.05,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop as soon as the evidence decides.")
    ] = False,
    baseline_cache: Annotated[
        Path | None,
        typer.Option("--baseline-cache", help="A kept baseline: used if there, written if not."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Folder for drift.html, drift.json and lm-evaluation-harness results."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Artifacts of the folder, with commas between. [default: all that run here]",
        ),
    ] = None,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Run a Hugging Face checkpoint in vLLM.")
    ] = False,
    device: Device = "cpu",
    provider: Annotated[
        str, typer.Option("--provider", help="Where onnxruntime runs: cpu, cuda, ...")
    ] = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Measure what the shipped files lost.

    Runs them in llama.cpp, onnxruntime, TensorRT, transformers, vLLM or behind an endpoint against
    the unquantized checkpoint: KL divergence, top-1 agreement, perplexity, accuracy problem by
    problem, and the health of the reasoning. Exit status 3 when a limit is exceeded, 5 when the
    sample is too small to tell; of several artifacts the worst. Interrupted, the same command goes
    on where it was.
    """
    from tightfit.drift.gate import Limits, worst_exit_status
    from tightfit.drift.outputs.github import publish
    from tightfit.drift.report import to_fields
    from tightfit.pipeline.drift import DriftRequest, run_drift
    from tightfit.pipeline.drift.outputs import check_outputs, write_outputs
    from tightfit.targets.formats import FORMATS

    request = DriftRequest(
        artifact=artifact,
        baseline=baseline,
        revision=revision,
        endpoint=endpoint,
        endpoint_model=model,
        vllm=vllm,
        formats=() if formats is None else chosen_names(formats, "--format", tuple(FORMATS)),
        subset=subset,
        dataset=dataset,
        protocol=protocol_choice(
            protocol,
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ),
        limits=Limits(max_drop_points=max_drop, max_kl_nats=max_kl),
        sequential=sequential,
        baseline_cache=baseline_cache,
        device=device,
        provider=provider,
        command=shlex.join(["tightfit", *sys.argv[1:]]),
    )
    check_outputs(junit, report)
    reporter = StderrReporter()

    def deliver(results: "Sequence[DriftResult]") -> None:
        write_outputs(results, junit, report, date=datetime.now(UTC), reporter=reporter)

    results = run_drift(request, reporter, deliver)
    reports = [result.report for result in results]
    emit(
        {"artifacts": [to_fields(each) for each in reports]},
        *render_drift(reports),
        as_json=as_json,
    )
    emit_lines(publish(reports, os.environ))
    raise typer.Exit(worst_exit_status(each.decision for each in reports))
