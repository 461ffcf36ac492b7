"""How to run what is there: a command for every runtime that has its files, and for no other.

Each is for exactly the names in the manifest. Sources: the Hub's pages on llama.cpp, Ollama and LM
Studio; the documentation of vLLM, transformers, onnxruntime-genai, Transformers.js, TensorRT-LLM.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tightfit.export.manifest import Artifact, Manifest
from tightfit.publish.card import layout
from tightfit.publish.card.markdown import BREAK, Markdown, block, code, command, text
from tightfit.publish.card.metadata import is_for_transformers_js
from tightfit.publish.card.snippets import GENAI, ONNXRUNTIME, TRANSFORMERS, TRANSFORMERS_JS

_GENAI_CONFIG: Final = "genai_config.json"
_PACKAGES: Final = {
    "gptq": ("accelerate", "gptqmodel", "optimum"),
    "awq": ("accelerate", "gptqmodel"),
    "compressed-tensors": ("accelerate", "compressed-tensors"),
}
"""What transformers loads a format through."""
_FILES_A_LINE: Final = 3
_NO_NOTE: Final = Markdown()


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """One runtime."""

    title: str
    note: Markdown = _NO_NOTE
    blocks: tuple[Markdown, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """What the commands are about."""

    id: str
    """`OWNER/NAME`."""
    manifest: Manifest
    sampling: dict[str, Any]
    js_dtype: str | None
    """From config.json, where Transformers.js looks."""

    @property
    def name(self) -> str:
        """Of the folder that a download goes to."""
        return self.id.rpartition("/")[2]


def usages(manifest: Manifest, folder: Path, repo: str) -> tuple[Usage, ...]:
    """In the order of the manifest."""
    config = layout.small_file(manifest, folder, "config.json")
    about = Repository(
        id=repo,
        manifest=manifest,
        sampling=layout.sampling(manifest, folder),
        js_dtype=config.get("transformers.js_config", {}).get("dtype"),
    )
    found: list[Usage] = []
    for artifact in manifest.artifacts:
        if artifact.format == "gguf":
            found += _gguf(about, artifact)
        elif artifact.format == "onnx":
            found += _onnx(about, artifact)
        elif artifact.format == "tensorrt":
            found.append(_tensorrt(about))
        else:
            found += _checkpoint(about, artifact)
    return tuple(found)


def _gguf(about: Repository, artifact: Artifact) -> list[Usage]:
    name = artifact.files[0].name
    options = ["-c", str(about.manifest.context_tokens)]
    for key, option in (("temperature", "--temp"), ("top_p", "--top-p"), ("top_k", "--top-k")):
        if key in about.sampling:
            options += [option, str(about.sampling[key])]
    server = command("llama-server", "-hf", about.id, "-hff", name, *options)
    label = layout.quant_label(name)
    studio = f"https://huggingface.co/{about.id}" + (f"@{label}" if label else "")
    found = [Usage(title="llama.cpp", blocks=(block("sh", [server]),))]
    if layout.is_split(artifact):
        merge = (
            _download(about, [record.name for record in artifact.files]),
            command("llama-gguf-split", "--merge", f"{about.name}/{name}", "merged.gguf"),
        )
        note = Markdown(
            "Ollama pulls no GGUF that is split over several files. Merge them, then "
            f"{code('ollama create')} from a Modelfile with {code('FROM ./merged.gguf')}:"
        )
        found.append(Usage(title="Ollama", note=note, blocks=(block("sh", merge),)))
    else:
        run = command("ollama", "run", f"hf.co/{about.id}:{label or name}")
        note = Markdown(f"Sampling, stop tokens and context come from {code('params')}.")
        found.append(Usage(title="Ollama", note=note, blocks=(block("sh", [run]),)))
    found.append(Usage(title="LM Studio", blocks=(block("sh", [command("lms", "get", studio)]),)))
    return found


def _checkpoint(about: Repository, artifact: Artifact) -> list[Usage]:
    """vLLM, transformers and TensorRT-LLM: by the repository's name, or from a subfolder."""
    inside = layout.subfolder(artifact)
    shown = layout.label(artifact)
    fetch = [] if not inside else [_download(about, [f"{inside}/*"], patterns=True)]
    where = f"./{about.name}/{inside}" if inside else about.id
    found = []
    context = str(about.manifest.context_tokens)
    fp8 = any(grid.startswith("fp8") for grid in layout.quantized_grids(artifact))
    if artifact.format != "modelopt" or fp8:
        serve = command("vllm", "serve", where, "--max-model-len", context)
        found.append(Usage(title=f"vLLM ({shown})", blocks=(block("sh", [*fetch, serve]),)))
    if artifact.format == "modelopt":
        serve = command("trtllm-serve", where, "--max_seq_len", context)
        found.append(Usage(title="TensorRT-LLM", blocks=(block("sh", [*fetch, serve]),)))
    else:
        install = command("pip", "install", "transformers", *_PACKAGES[artifact.format])
        subfolder = f", subfolder={json.dumps(inside)}" if inside else ""
        lines = [
            line.replace("REPO", json.dumps(about.id)).replace("SUBFOLDER", subfolder)
            for line in TRANSFORMERS
        ]
        blocks = (block("sh", [install]), block("python", lines))
        found.append(Usage(title=f"transformers ({shown})", blocks=blocks))
    return found


def _onnx(about: Repository, artifact: Artifact) -> list[Usage]:
    names = [record.name for record in artifact.files]
    found = []
    if is_for_transformers_js(artifact) and about.js_dtype:
        lines = [
            line.replace("REPO", json.dumps(about.id)).replace("DTYPE", json.dumps(about.js_dtype))
            for line in TRANSFORMERS_JS
        ]
        found.append(Usage(title="Transformers.js", blocks=(block("js", lines),)))
    if _GENAI_CONFIG in names:
        files = [*names, *(record.name for record in about.manifest.companions)]
        lines = [line.replace("FOLDER", json.dumps(about.name)) for line in GENAI]
        fetch = ["pip install onnxruntime-genai", _download(about, files)]
        blocks = (block("sh", fetch), block("python", lines))
        found.append(Usage(title="onnxruntime-genai", blocks=blocks))
    else:
        path = json.dumps(f"{about.name}/{names[0]}")
        lines = [line.replace("PATH", path) for line in ONNXRUNTIME]
        blocks = (block("sh", [_download(about, names)]), block("python", lines))
        note = text("The graph takes token ids and the KV cache of the step before.")
        found.append(Usage(title="onnxruntime", note=note, blocks=blocks))
    return found


def _tensorrt(about: Repository) -> Usage:
    lines = (
        "pip install 'tightfit[tensorrt]'",
        command("hf", "download", about.id, "--local-dir", about.name),
        command("tightfit", "verify", about.name, "--on-gpu"),
    )
    note = text(
        "The engine is for TensorRT for RTX, of exactly the version that built it. This runs it "
        "on your card and compares its logits with the golden ones:"
    )
    return Usage(title="TensorRT for RTX", note=note, blocks=(block("sh", lines),))


def _download(about: Repository, names: Sequence[str], *, patterns: bool = False) -> str:
    """`hf download` of some files, a few of them a line."""
    start = ["hf", "download", about.id, "--local-dir", about.name]
    if patterns:
        return command(*start, *(word for name in names for word in ("--include", name)))
    rows = [names[at : at + _FILES_A_LINE] for at in range(0, len(names), _FILES_A_LINE)]
    return BREAK.join([command(*start), *(command(*row) for row in rows)])
