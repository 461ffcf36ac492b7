"""The commands that make the artifacts again, from what the manifest holds."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tightfit.export.manifest import Artifact, Manifest
from tightfit.publish.card.markdown import BREAK, command
from tightfit.publish.card.metadata import is_for_transformers_js
from tightfit.publish.card.model import BaseModel
from tightfit.targets.profile import list_targets, load_target

_BUDGET: Final = re.compile(r"(--bpw|--budget-gib) ([\d.]+(?:e[+-]?\d+)?)")
"""The limit that the user set, as the plan's reason quotes it (`Budget.text`)."""
_RTN: Final = "rtn"


def export_commands(manifest: Manifest, base: BaseModel) -> tuple[str, ...]:
    """One command; several where formats were made by different schemes."""
    by_options: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact in manifest.artifacts:
        by_options.setdefault(_scheme(manifest, artifact), []).append(artifact)
    return tuple(_command(manifest, base, *item) for item in by_options.items())


def _command(
    manifest: Manifest, base: BaseModel, scheme: tuple[str, ...], group: Sequence[Artifact]
) -> str:
    parts = (
        ("tightfit", "export", *_input(manifest, base), *_target(manifest)),
        ("--format", ",".join(made.format for made in group), *scheme),
        _calibration(manifest, group),
        [*_onnx(group), *_engines(manifest, group)],
    )
    return BREAK.join(command(*words) for words in parts if words)


def _input(manifest: Manifest, base: BaseModel) -> list[str]:
    record = manifest.input
    name = base.short_name or base.hub_id or f"./{record.id}"
    return [name, *(["--revision", record.revision] if record.revision else [])]


def _target(manifest: Manifest) -> list[str]:
    built_in = manifest.target in list_targets()
    given = ["--target", manifest.target]
    if not built_in:
        given = ["--target-file", f"{manifest.target}.toml"]
    return [*given, "--context", str(manifest.context_tokens)]


def _scheme(manifest: Manifest, artifact: Artifact) -> tuple[str, ...]:
    scheme = artifact.scheme
    words = ["--scheme", scheme.name]
    budget = _BUDGET.search(scheme.reason)
    if budget and scheme.budget_bytes is not None:
        words += budget.groups()
    if manifest.calibration or manifest.imatrix or scheme.method != _RTN:
        words += ["--method", scheme.method, "--order", scheme.order]
        if scheme.calibrate_from != "quantized":
            words += ["--calibrate-from", scheme.calibrate_from]
    return tuple(words)


def _calibration(manifest: Manifest, group: Sequence[Artifact]) -> list[str]:
    if manifest.imatrix:
        return ["--calib", f"imatrix:{Path(manifest.imatrix.name).name}"]
    used = manifest.calibration
    if used is None:
        rounded = all(made.scheme.method == _RTN for made in group)
        return ["--calib", "none"] if rounded else []
    return [
        *("--calib", used.source),
        *("--calib-samples", str(used.samples)),
        *("--calib-length", str(used.max_tokens)),
        *("--seed", str(used.seed)),
    ]


def _onnx(group: Sequence[Artifact]) -> list[str]:
    made = next((each for each in group if each.format == "onnx"), None)
    if made is None or made.graph is None:
        return []
    layout = "transformers-js" if is_for_transformers_js(made) else "genai"
    return [
        *("--onnx-dialect", made.graph.dialect),
        *("--onnx-precision", made.graph.precision),
        *("--onnx-layout", layout),
    ]


def _engines(manifest: Manifest, group: Sequence[Artifact]) -> list[str]:
    engines = [engine for made in group for engine in made.engines]
    if not engines or manifest.target not in list_targets():
        return []
    own = load_target(manifest.target).compute_capability
    more = [each for each in engines[0].compute_capabilities if each != own]
    return ["--also-for", ",".join(more)] if more else []
