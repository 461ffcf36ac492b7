"""`tightfit targets`: the hardware profiles."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.options import JsonFlag, TargetFile, examples
from tightfit.cli.output import emit, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.targets.profile import Target

EXAMPLES = examples(
    ("targets", "all targets"),
    ("targets rtx3060-8gb", "one target with the sources of its figures"),
    ("targets --target-file my-card.toml", "check a profile of your own and show it"),
)


def targets_command(
    name: Annotated[str | None, typer.Argument(help="One target, in full.")] = None,
    target_file: TargetFile = None,
    as_json: JsonFlag = False,
) -> None:
    """List the hardware targets, or show one.

    In full, a target shows where each of its figures comes from.
    """
    from tightfit.targets.profile import choose_target, list_targets, load_target

    if name is not None or target_file is not None:
        target = choose_target(name, target_file)
        emit(asdict(target), *_details(target), as_json=as_json)
        return
    every = [load_target(each) for each in list_targets()]
    rows = [
        [
            target.name,
            target.description,
            ", ".join(_formats(target)),
            target.compute_capability or "-",
            _memory(target),
            f"{target.available_bytes / (1 << 30):.2f}",
            f"{target.bandwidth_gb_s:g}",
        ]
        for target in every
    ]
    emit(
        {"targets": [asdict(target) for target in every]},
        table(
            "",
            ("target", "description", "formats", "SM", "GiB", "for a model", "GB/s"),
            rows,
            left=3,
        ),
        as_json=as_json,
    )


def _formats(target: "Target") -> list[str]:
    """Formats whose runtime the target has."""
    from tightfit.targets.formats import FORMATS

    return [name for name, kind in FORMATS.items() if kind.runtime in target.runtimes]


def _memory(target: "Target") -> str:
    several = f"{target.device_count} x " if target.device_count > 1 else ""
    return f"{several}{target.memory_gib:g}"


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
    if target.interconnect is not None and target.interconnect_gb_s is not None:
        facts += [
            ["node_count", str(target.node_count)],
            ["interconnect", target.interconnect],
            ["interconnect_gb_s", f"{target.interconnect_gb_s:g}"],
        ]
    if target.unified_memory:
        facts.append(["unified_memory", "true"])
    rows = [[field, text, target.sources.get(field, "")] for field, text in facts]
    # One source for all runtimes, beside the first of them.
    about = [target.sources.get("runtimes", ""), *[""] * len(target.runtimes)]
    rows += [
        [f"runtimes.{runtime}", ", ".join(grids), source]
        for (runtime, grids), source in zip(target.runtimes.items(), about, strict=False)
    ]
    rows += [[f"notes.{name}", note, ""] for name, note in target.notes.items()]
    return (
        f"{target.name}: {target.description}",
        table("", ("field", "value", "source"), rows, left=3),
    )
