"""`tightfit targets`: the hardware profiles."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import emit, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.targets.profile import Target

EXAMPLES = examples(
    ("targets", "all targets"),
    ("targets rtx3060-8gb", "one target with the sources of its figures"),
)


def targets_command(
    name: Annotated[str | None, typer.Argument(help="One target, in full.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the hardware targets, or show one.

    In full, a target shows where each of its figures comes from.
    """
    from tightfit.targets.formats import FORMATS
    from tightfit.targets.profile import list_targets, load_target

    if name:
        target = load_target(name)
        emit(asdict(target), *_details(target), as_json=as_json)
        return
    every = [load_target(each) for each in list_targets()]
    rows = [
        [
            target.name,
            target.description,
            target.compute_capability or "-",
            f"{target.memory_gib:g}",
            f"{target.available_bytes / (1 << 30):.2f}",
            f"{target.bandwidth_gb_s:g}",
            *(target.preferred_schemes.get(name, ("-",))[0] for name in FORMATS),
        ]
        for target in every
    ]
    emit(
        {"targets": [asdict(target) for target in every]},
        table(
            "",
            ("target", "description", "SM", "GiB", "for a model", "GB/s", *FORMATS),
            rows,
            left=2,
        ),
        as_json=as_json,
    )


def _details(target: "Target") -> "tuple[RenderableType, ...]":
    facts = [
        ["memory_gib", f"{target.memory_gib:g}"],
        ["reserved_gib", f"{target.reserved_gib:g}"],
        ["runtime_overhead_gib", f"{target.runtime_overhead_gib:g}"],
        ["bandwidth_gb_s", f"{target.bandwidth_gb_s:g}"],
        ["compute_capability", target.compute_capability or "-"],
        ["tensor_types", ", ".join(target.tensor_types)],
        ["device_count", str(target.device_count)],
    ]
    facts += [[f"grids in {name}", ", ".join(grids)] for name, grids in target.runtimes.items()]
    facts += [
        [f"preferred_schemes.{name}", ", ".join(schemes)]
        for name, schemes in target.preferred_schemes.items()
    ]
    facts += [[f"notes.{name}", note] for name, note in target.notes.items()]
    rows = [[field, text, target.sources.get(field, "")] for field, text in facts]
    return (
        f"{target.name}: {target.description}",
        table("", ("field", "value", "source"), rows, left=3),
    )
