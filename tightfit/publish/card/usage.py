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
from tightfit.publish.card.markdown import (
    BREAK,
    Markdown,
    block,
    code,
    command,
    listed,
    text,
)
from tightfit.publish.card.metadata import is_for_transformers_js
from tightfit.publish.card.snippets import GENAI, ONNXRUNTIME, TRANSFORMERS, TRANSFORMERS_JS
from tightfit.runtimes.tensorrt.package import Package, package_of

_GENAI_CONFIG: Final = "genai_config.json"
_PACKAGES: Final = {
    "gptq": ("accelerate", "gptqmodel", "optimum"),
    "awq": ("accelerate", "gptqmodel"),
    "compressed-tensors": ("accelerate", "compressed-tensors"),
}
"""What transformers loads a format through."""
_FILES_A_LINE: Final = 3
MAIN: Final = "main"
"""The branch that every program takes unless it is told another."""
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
    branch: str

    @property
    def is_main(self) -> bool:
        """Whether a program finds it by the repository's name alone."""
        return self.branch == MAIN

    @property
    def name(self) -> str:
        """Of the folder that a download goes to."""
        return self.id.rpartition("/")[2]


def revision_option(branch: str) -> tuple[str, ...]:
    """How `hf`, vLLM and tightfit are told a branch."""
    return () if branch == MAIN else ("--revision", branch)


def usages(manifest: Manifest, folder: Path, repo: str, branch: str) -> tuple[Usage, ...]:
    """In the order of the manifest."""
    config = layout.small_file(manifest, folder, "config.json")
    about = Repository(
        id=repo,
        manifest=manifest,
        sampling=layout.sampling(manifest, folder),
        js_dtype=config.get("transformers.js_config", {}).get("dtype"),
        branch=branch,
    )
    found: list[Usage] = []
    for artifact in manifest.artifacts:
        if artifact.format == "gguf":
            found += _gguf(about, artifact)
        elif artifact.format == "onnx":
            found += _onnx(about, artifact)
        elif artifact.format == "tensorrt":
            found.append(_tensorrt(about, artifact))
        else:
            found += _checkpoint(about, artifact)
    return tuple(found)


def _gguf(about: Repository, artifact: Artifact) -> list[Usage]:
    name = artifact.files[0].name
    options = ["-c", str(about.manifest.context_tokens)]
    for key, option in (("temperature", "--temp"), ("top_p", "--top-p"), ("top_k", "--top-k")):
        if key in about.sampling:
            options += [option, str(about.sampling[key])]
    if not about.is_main:
        return _downloaded_gguf(about, artifact, options)
    server = command("llama-server", "-hf", about.id, "-hff", name, *options)
    label = layout.quant_label(name)
    studio = f"https://huggingface.co/{about.id}" + (f"@{label}" if label else "")
    found = [Usage(title="llama.cpp", blocks=(block("sh", [server]),))]
    if layout.is_split(artifact):
        note = Markdown(
            "Ollama pulls no GGUF that is split over several files. Merge them, then "
            f"{code('ollama create')} from a Modelfile with {code('FROM ./merged.gguf')}:"
        )
        merge = (_download_files(about, artifact), _merge(about, name))
        found.append(Usage(title="Ollama", note=note, blocks=(block("sh", merge),)))
    else:
        run = command("ollama", "run", f"hf.co/{about.id}:{label or name}")
        note = Markdown(f"Sampling, stop tokens and context come from {code('params')}.")
        found.append(Usage(title="Ollama", note=note, blocks=(block("sh", [run]),)))
    found.append(Usage(title="LM Studio", blocks=(block("sh", [command("lms", "get", studio)]),)))
    return found


def _downloaded_gguf(about: Repository, artifact: Artifact, options: Sequence[str]) -> list[Usage]:
    """Of a branch that the programs do not look at: they get the file."""
    name = artifact.files[0].name
    path = f"{about.name}/{name}"
    server = (_download_files(about, artifact), command("llama-server", "-m", path, *options))
    found = [Usage(title="llama.cpp", blocks=(block("sh", server),))]
    is_split = layout.is_split(artifact)
    model = "merged.gguf" if is_split else path
    note = Markdown(
        "Downloaded as above; then "
        f"{code('ollama create')} from a Modelfile with {code(f'FROM ./{model}')}."
    )
    merge = (block("sh", [_merge(about, name)]),) if is_split else ()
    found.append(Usage(title="Ollama", note=note, blocks=merge))
    studio = command("lms", "import", model)
    found.append(Usage(title="LM Studio", blocks=(block("sh", [studio]),)))
    return found


def _download_files(about: Repository, artifact: Artifact) -> str:
    return _download(about, [record.name for record in artifact.files])


def _merge(about: Repository, name: str) -> str:
    return command("llama-gguf-split", "--merge", f"{about.name}/{name}", "merged.gguf")


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
        at = () if inside else revision_option(about.branch)
        serve = command("vllm", "serve", where, *at, "--max-model-len", context)
        found.append(Usage(title=f"vLLM ({shown})", blocks=(block("sh", [*fetch, serve]),)))
    if artifact.format == "modelopt":
        if not about.is_main and not inside:
            fetch, where = [_download(about, [])], f"./{about.name}"
        serve = command("trtllm-serve", where, "--max_seq_len", context)
        found.append(Usage(title="TensorRT-LLM", blocks=(block("sh", [*fetch, serve]),)))
    else:
        install = command("pip", "install", "transformers", *_PACKAGES[artifact.format])
        subfolder = f", subfolder={json.dumps(inside)}" if inside else ""
        revision = "" if about.is_main else f", revision={json.dumps(about.branch)}"
        lines = [
            line.replace("REPO", json.dumps(about.id)).replace("SUBFOLDER", subfolder + revision)
            for line in TRANSFORMERS
        ]
        blocks = (block("sh", [install]), block("python", lines))
        found.append(Usage(title=f"transformers ({shown})", blocks=blocks))
    return found


def _onnx(about: Repository, artifact: Artifact) -> list[Usage]:
    names = [record.name for record in artifact.files]
    found = []
    if is_for_transformers_js(artifact) and about.js_dtype:
        options = f"dtype: {json.dumps(about.js_dtype)}"
        if not about.is_main:
            options += f", revision: {json.dumps(about.branch)}"
        lines = [
            line.replace("REPO", json.dumps(about.id)).replace("OPTIONS", options)
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


def _tensorrt(about: Repository, artifact: Artifact) -> Usage:
    builders = list(dict.fromkeys(engine.builder for engine in artifact.engines))
    classic = any(package_of(builder) is Package.CLASSIC for builder in builders)
    rtx = any(package_of(builder) is Package.RTX for builder in builders)
    lines = (
        *(["pip install 'tightfit[tensorrt]'"] if rtx else []),
        *(["pip install tightfit tensorrt"] if classic else []),
        _download(about, []),
        command("tightfit", "verify", about.name, "--on-gpu"),
    )
    note = text(
        f"The engines were built by {listed(builders)} and run in exactly that version. This runs "
        "them on your card and compares the logits with the golden ones:"
    )
    return Usage(title="TensorRT", note=note, blocks=(block("sh", lines),))


def _download(about: Repository, names: Sequence[str], *, patterns: bool = False) -> str:
    """`hf download` of some files, a few of them a line; of none: of all."""
    where = ("--local-dir", about.name)
    start = ["hf", "download", about.id, *revision_option(about.branch), *where]
    if patterns:
        return command(*start, *(word for name in names for word in ("--include", name)))
    rows = [names[at : at + _FILES_A_LINE] for at in range(0, len(names), _FILES_A_LINE)]
    return BREAK.join([command(*start), *(command(*row) for row in rows)])
