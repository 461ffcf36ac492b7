"""A plan, and the matrix of models by targets, as people, JSON and Markdown show them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tightfit.cli.output import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.targets.candidates import Candidate
    from tightfit.targets.matrix import Cell, Matrix
    from tightfit.targets.plan import Plan

_COLUMNS = (
    *("file", "bits", "weights", "KV cache", "compute", "total"),
    *("max context", "KL, predicted", "tokens/s, bound", "fits"),
)
_K_TOKENS = 1024
_DISTILL = "r1-distill-"
"""What the names of six models begin with; the columns are narrow."""


def plan_document(plan: "Plan") -> Mapping[str, Any]:
    """The plan as JSON shows it."""
    return {
        "model": plan.model,
        "target": plan.target.name,
        "format": plan.format,
        "runtime": plan.runtime,
        "precision": plan.precision,
        "workload": asdict(plan.setting.workload),
        "available_bytes": plan.setting.available_bytes,
        "candidates": [_candidate_document(candidate) for candidate in plan.candidates],
        "chosen": _candidate_document(plan.chosen),
        "budget_bytes": plan.mix.budget_bytes if plan.mix else None,
        "storage": dict(plan.storage),
        "reason": plan.reason,
    }


def render_plan(plan: "Plan") -> "tuple[RenderableType, ...]":
    """The plan for people: every scheme, the chosen one marked, and the reason."""
    rows = [
        [f"{'>' if item.scheme == plan.chosen.scheme else ' '} {item.scheme}", *_figures(item)]
        for item in plan.candidates
    ]
    parts: list[RenderableType] = [
        table(_title(plan, f" in {plan.runtime}"), ("scheme", *_COLUMNS), rows),
        plan.reason,
    ]
    if plan.setting.n_devices > 1:
        parts.append(_share(plan))
    return tuple(parts)


def render_chosen(plans: "Sequence[Plan]") -> "RenderableType":
    """The chosen scheme of each of several formats."""
    rows = [[plan.format, plan.chosen.scheme, *_figures(plan.chosen)] for plan in plans]
    return table(_title(plans[0]), ("format", "scheme", *_COLUMNS), rows, left=2)


def matrix_document(matrix: "Matrix") -> Mapping[str, Any]:
    """The matrix as JSON shows it."""
    return {
        "context_tokens": matrix.context_tokens,
        "models": matrix.models,
        "cells": [asdict(cell) for cell in matrix.cells],
    }


def render_matrix(matrix: "Matrix") -> "tuple[RenderableType, ...]":
    """The matrix for people."""
    rows = [
        [target.name, *(_cell(cell) for cell in matrix.row(target))] for target in matrix.targets
    ]
    title = f"GGUF with at least {matrix.context_tokens} tokens of context: file type, max context"
    return (table(title, ("target", *_models(matrix)), rows),)


def matrix_markdown(matrix: "Matrix") -> str:
    """The matrix as a table of Markdown."""
    names = _models(matrix)
    lines = [
        f"| target | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {target.name} | {' | '.join(map(_cell, matrix.row(target)))} |"
            for target in matrix.targets
        ),
    ]
    return "\n".join(lines)


def _models(matrix: "Matrix") -> list[str]:
    """Heads of the columns."""
    return [", ".join(name.removeprefix(_DISTILL) for name in names) for names in matrix.models]


def _cell(cell: "Cell") -> str:
    if cell.scheme is None:
        return "-"
    return f"{cell.scheme.upper()}, {cell.max_context_tokens // _K_TOKENS}k"


def _candidate_document(candidate: "Candidate") -> dict[str, Any]:
    memory = candidate.memory
    return asdict(candidate) | {
        "total_bytes": memory.total_bytes,
        "weights_bytes": memory.weights_bytes,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "compute_bytes": memory.compute_bytes,
        "runtime_bytes": memory.runtime_bytes,
    }


def _title(plan: "Plan", runtime: str = "") -> str:
    from tightfit.targets.memory_use import size_text

    workload = plan.setting.workload
    sequences = f" for each of {workload.n_sequences} sequences" * (workload.n_sequences > 1)
    return (
        f"{plan.model} on {plan.target.name}{runtime}, {workload.context_tokens} tokens of context"
        f"{sequences}, {size_text(plan.setting.available_bytes)} to spend, "
        f"{size_text(plan.chosen.memory.runtime_bytes)} of it on the runtime"
    )


def _share(plan: "Plan") -> str:
    """How several devices share the model."""
    from tightfit.targets.memory_use import size_text

    n_used, n_there = plan.setting.n_devices, plan.target.device_count
    devices = f"{n_used} devices"
    if n_used < n_there:
        devices = f"{n_used} of {n_there} devices, the most that llama.cpp takes"
    return (
        f"{devices}, split by {plan.setting.workload.split}: the fullest holds "
        f"{size_text(plan.chosen.memory.fullest_bytes)} of its "
        f"{size_text(plan.target.device_available_bytes)}"
    )


def _figures(item: "Candidate") -> list[str]:
    """A row of `_COLUMNS`."""
    from tightfit.targets.memory_use import size_text

    memory = item.memory
    parts = (memory.weights_bytes, memory.kv_cache_bytes, memory.compute_bytes)
    return [
        size_text(item.file_bytes),
        f"{item.bits_per_weight:.2f}",
        *map(size_text, parts),
        size_text(memory.total_bytes),
        str(item.max_context_tokens or "-"),
        f"{item.predicted_nats:.2g}",
        f"{item.max_tokens_per_s:.3g}",
        "yes" if item.fits else "no",
    ]
