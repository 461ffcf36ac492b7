"""`tightfit drift baseline`: compute what the unquantized checkpoint answers, once, and keep it."""

from pathlib import Path
from typing import Annotated

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
from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import StderrReporter, emit

EXAMPLES = examples(
    ("drift baseline tiny-r1 -o base.zip", "the embedded problems"),
    ("drift baseline r1-distill-qwen-7b --subset math500:n=128 -o base.zip", "where the GPU is"),
    (
        "drift out --baseline r1-distill-qwen-7b --subset math500:n=128 --baseline-cache base.zip",
        "then anywhere, without the big model",
    ),
)


def drift_baseline_command(
    model: Annotated[str, typer.Argument(help="The unquantized checkpoint: name, Hub id, folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to keep it in.")],
    revision: Revision = None,
    subset: SubsetOption = None,
    dataset: Dataset = None,
    protocol: ProtocolName = None,
    samples: Samples = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Compute a baseline and keep it in a file.

    Answers, and log-probabilities over the reasoning traces. `drift --baseline-cache FILE` takes
    them from there, so that the big model never runs twice.
    """
    from tightfit.pipeline.drift import DriftRequest, make_baseline

    request = DriftRequest(
        artifact=None,
        baseline=model,
        revision=revision,
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
        baseline_cache=output,
        device=device,
    )
    summary = make_baseline(request, StderrReporter())
    emit(
        {
            "file": str(output),
            "model": summary.model,
            "revision": summary.revision,
            "problems": summary.n_problems,
            "traces": summary.n_traces,
            "key": summary.key,
            "size_bytes": output.stat().st_size,
        },
        f"{output}: {summary.n_problems} problems and {summary.n_traces} traces of "
        f"{summary.model}, {output.stat().st_size / 1e6:.1f} MB",
        as_json=as_json,
    )
