"""Options that `drift` and `drift baseline` share."""

from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.options import chosen_name

if TYPE_CHECKING:
    from tightfit.pipeline.drift import ProtocolChoice

Revision = Annotated[str | None, typer.Option("--revision", help="Of the baseline on the Hub.")]
SubsetOption = Annotated[
    str | None,
    typer.Option(
        "--subset",
        help="Problems: embedded, math500, aime24, gsm8k or a file, with :n=,level=,subject=,seed=."
        " [default: embedded]",
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option("--dataset", help="Another data set: Hub id or file; --subset then filters it."),
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="deepseek (temperature 0.6, top-p 0.95, 32,768 tokens) or greedy. "
        "[default: greedy for the embedded problems, else deepseek]",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Answers to each problem.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus of the sampling.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")]
Device = Annotated[str, typer.Option("--device", help="Where transformers runs.")]


def protocol_choice(
    name: str | None,
    *,
    samples: int | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int,
) -> "ProtocolChoice":
    """The choice that the options make; raises `UsageError` for an unknown protocol."""
    from tightfit.drift.protocol import PROTOCOLS
    from tightfit.pipeline.drift import ProtocolChoice

    return ProtocolChoice(
        name=None if name is None else chosen_name(name, "--protocol", tuple(PROTOCOLS)),
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
