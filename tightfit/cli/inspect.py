"""`tightfit inspect`: what a file holds."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightfit.cli.artifacts import engine_text
from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import emit, table
from tightfit.errors import ArtifactError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.export.manifest import Artifact

EXAMPLES = examples(
    ("inspect out/tiny-r1-Q4_K_M.gguf", "metadata and tensors of a GGUF"),
    ("inspect out", "the manifest of an artifact: input, scheme, calibration, proofs"),
    ("inspect model.safetensors --json", "names, types and shapes in a checkpoint's shard"),
)
_FORMS = "a .gguf, .onnx or .safetensors file, or a folder (or tightfit.json) of an export"
_LONGEST_TEXT = 60
"""Characters of a metadata value that are shown; chat templates run over pages."""


def inspect_command(
    file: Annotated[Path, typer.Argument(help=f"What to look at: {_FORMS}.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a file holds.

    GGUF, ONNX, safetensors, or an export's manifest; no weights are loaded.
    """
    from tightfit.export.manifest import MANIFEST_NAME

    if not file.exists():
        raise ArtifactError(
            f"{file}: no such file or folder", allowed=_FORMS, hint="check the path"
        )
    if file.is_dir() or file.name == MANIFEST_NAME:
        _inspect_manifest(file if file.is_dir() else file.parent, as_json)
    elif file.suffix == ".gguf":
        _inspect_gguf(file, as_json)
    elif file.suffix == ".onnx":
        _inspect_onnx(file, as_json)
    elif file.suffix == ".safetensors":
        _inspect_safetensors(file, as_json)
    else:
        raise ArtifactError(
            f"{file}: tightfit does not know this kind of file",
            allowed=_FORMS,
            hint="give the file by its usual ending",
        )


def _inspect_manifest(folder: Path, as_json: bool) -> None:
    import json

    from tightfit.export.manifest import manifest_text, read_manifest

    manifest = read_manifest(folder)
    facts = [
        ["input", f"{manifest.input.id} {manifest.input.revision or ''}".strip()],
        ["target", f"{manifest.target}, {manifest.context_tokens} tokens of context"],
    ]
    if manifest.calibration:
        used = manifest.calibration
        text = f"{used.source}: {used.samples} samples, {used.tokens} tokens, seed {used.seed}"
        facts.append(["calibration", text])
    facts += [["versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())]]
    shown: list[RenderableType] = [table("", ("field", "value"), facts, left=2)]
    shown += [
        table(artifact.format, ("field", "value"), _artifact_facts(artifact), left=2)
        for artifact in manifest.artifacts
    ]
    if len(manifest.artifacts) == 1:
        tensors = manifest.artifacts[0].tensors
        shown.append(_tensor_table([(t.name, t.grid, t.shape) for t in tensors]))
    else:
        shown.append("tightfit inspect FILE lists the tensors of one of them")
    emit(json.loads(manifest_text(manifest)), *shown, as_json=as_json)


def _artifact_facts(artifact: "Artifact") -> list[list[str]]:
    scheme = artifact.scheme
    grids = Counter(tensor.grid for tensor in artifact.tensors)
    facts = [
        ["scheme", f"{scheme.name}, {artifact.bits_per_weight:.2f} bits per weight"],
        ["method", scheme.method],
        ["tensors", ", ".join(f"{count} {grid}" for grid, count in grids.most_common())],
        ["weights sha256", artifact.weights_sha256],
    ]
    if artifact.graph:
        facts.append(["graph", f"{artifact.graph.dialect}, {artifact.graph.precision}"])
    facts += [[f"engine {engine.file}", engine_text(engine)] for engine in artifact.engines]
    if artifact.verification:
        proof = artifact.verification
        facts.append(["exact tensors", f"{proof.exact_tensors} of {proof.tensors}"])
    return facts + [[record.name, f"{record.size_bytes} bytes"] for record in artifact.files]


def _inspect_onnx(file: Path, as_json: bool) -> None:
    from tightfit.export.onnx.describe import describe_onnx

    held = describe_onnx(file)
    facts = [
        ["opsets", ", ".join(f"{domain} {version}" for domain, version in held.opsets.items())],
        ["nodes", ", ".join(f"{n} {kind}" for kind, n in held.operators.items())],
        ["inputs", ", ".join(held.inputs)],
        ["outputs", ", ".join(held.outputs)],
    ]
    emit(
        {"format": "onnx", **asdict(held)},
        table(file.name, ("field", "value"), facts, left=2),
        _tensor_table([(each.name, each.dtype, each.shape) for each in held.tensors]),
        as_json=as_json,
    )


def _inspect_safetensors(file: Path, as_json: bool) -> None:
    from tightfit.calib.safetensors_header import read_header

    held = read_header(file)
    tensors = [(name, str(t.dtype).removeprefix("torch."), t.shape) for name, t in held.items()]
    document: dict[str, Any] = {
        "format": "safetensors",
        "tensors": [{"name": name, "type": kind, "shape": shape} for name, kind, shape in tensors],
        "data_bytes": sum(stored.nbytes for stored in held.values()),
    }
    emit(document, _tensor_table(tensors), as_json=as_json)


def _tensor_table(tensors: list[tuple[str, str, tuple[int, ...]]]) -> "RenderableType":
    counts = Counter(kind for _, kind, _ in tensors)
    title = f"{len(tensors)} tensors: " + ", ".join(f"{n} x {kind}" for kind, n in counts.items())
    rows = [[name, kind, " x ".join(map(str, shape))] for name, kind, shape in tensors]
    return table(title, ("tensor", "type", "shape"), rows, left=2)


def _inspect_gguf(file: Path, as_json: bool) -> None:
    from tightfit.export.gguf.readback import describe

    held = describe(file)
    document: dict[str, Any] = {
        "format": "gguf",
        "files": held.files,
        "metadata": held.metadata,
        "tensors": [asdict(tensor) for tensor in held.tensors],
        "data_bytes": held.size_bytes,
    }
    facts = [[key, _shortened(str(value))] for key, value in held.metadata.items()]
    emit(
        document,
        table(", ".join(path.name for path in held.files), ("key", "value"), facts, left=2),
        _tensor_table([(each.name, each.ggml_type, each.shape) for each in held.tensors]),
        as_json=as_json,
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"
