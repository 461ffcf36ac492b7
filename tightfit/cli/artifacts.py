"""How artifacts are shown: their files, what was proven, what they share."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tightfit.cli.output import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.export.manifest import Artifact, EngineRecord, Manifest


def render_artifact(folder: Path, artifact: "Artifact") -> "list[RenderableType]":
    """One artifact of a finished export."""
    from tightfit.targets.memory_use import size_text

    files = [
        [str(folder / record.name), size_text(record.size_bytes), record.sha256[:16]]
        for record in artifact.files
    ]
    grids = Counter(tensor.grid for tensor in artifact.tensors)
    # An export that finds one tensor different ends with an error instead.
    n_tensors = len(artifact.tensors)
    facts = [
        ["bits per weight", f"{artifact.bits_per_weight:.3f}"],
        ["tensors", ", ".join(f"{count} {grid}" for grid, count in grids.most_common())],
        ["method", artifact.scheme.method],
        ["read back", f"{n_tensors} of {n_tensors} tensors equal, bit for bit"],
        *([f"engine {engine.file}", engine_text(engine)] for engine in artifact.engines),
    ]
    return [
        table("", ("file", "size", "sha256"), files, left=1),
        table("", (artifact.format, ""), facts, left=2),
    ]


def describe_shared(manifest: "Manifest") -> list[str]:
    """What the calibration was, and which formats hold the same numbers."""
    lines = []
    if manifest.calibration:
        used = manifest.calibration
        lines.append(f"calibration: {used.source}, {used.samples} sequences, {used.tokens} tokens")
    by_hash: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        by_hash.setdefault(artifact.weights_sha256, []).append(artifact.format)
    lines += [
        f"{', '.join(formats)} hold the same numbers: weights {hash_[:16]}"
        for hash_, formats in by_hash.items()
        if len(formats) > 1
    ]
    return lines


def engine_text(engine: "EngineRecord") -> str:
    """What is known of an engine, in one line."""
    cards = ", ".join(f"SM {name.replace('.', '')}" for name in engine.compute_capabilities)
    note = ", experimental" if engine.experimental else ""
    facts = [f"{cards}{note}", engine.builder]
    if engine.verbatim_tensors:
        facts.append(
            f"{engine.verbatim_tensors} of {engine.quantized_tensors} quantized matrices verbatim"
        )
    if engine.executed:
        facts.append(
            f"ran on {engine.device}: {engine.tokens_per_s:.0f} tokens/s, "
            f"{engine.relative_difference:.1e} off the golden logits"
        )
    else:
        facts.append("built, not executed")
    return "; ".join(facts)
