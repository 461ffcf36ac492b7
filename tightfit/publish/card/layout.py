"""What lies where in the repository, as far as a command or a table needs it.

A checkpoint format lies at the root, where it is loaded by the repository's name, or in a folder of
its own. The Hub and Ollama call a GGUF by the last file type of llama.cpp's in its name.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tightfit.calib.json_file import read_json
from tightfit.export.manifest import Artifact, FileRecord, Manifest, stored_file
from tightfit.targets.formats import CHECKPOINT_FORMATS, find_format

_QUANT: Final = re.compile(
    r"(?:IQ[1-4]_(?:XXS|XS|NL|S|M)|Q[2-6]_K(?:_(?:S|M|L))?|Q[458]_[01]|BF16|F16|F32)"
)
"""llama.cpp's names of file types, of those that tightfit writes."""
_FLOATS: Final = {"F32", "F16", "BF16", "float32", "float16", "bfloat16"}
"""What the formats call tensors that are not quantized."""
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def label(artifact: Artifact) -> str:
    """The format in a sentence."""
    return find_format(artifact.format).label


def of_format(manifest: Manifest, name: str) -> Artifact | None:
    """The artifact of a format."""
    return next((made for made in manifest.artifacts if made.format == name), None)


def checkpoints(manifest: Manifest) -> list[Artifact]:
    """The Hugging Face checkpoints."""
    return [made for made in manifest.artifacts if made.format in CHECKPOINT_FORMATS]


def subfolder(artifact: Artifact) -> str:
    """The folder of its first file; empty at the root."""
    parent = PurePosixPath(artifact.files[0].name).parent.as_posix()
    return "" if parent == "." else parent


def main_files(artifact: Artifact) -> tuple[str, ...]:
    """What a runtime is given: the first file, or the engines."""
    engines = tuple(engine.file for engine in artifact.engines)
    return engines or (artifact.files[0].name,)


def is_split(artifact: Artifact) -> bool:
    """Whether it is a GGUF in several files."""
    return _PART.search(artifact.files[0].name) is not None


def quant_label(name: str) -> str | None:
    """By what name the Hub knows a GGUF among others; None: by its file name only."""
    found = _QUANT.findall(name.upper())
    return found[-1] if found else None


def small_file(manifest: Manifest, folder: Path, name: str) -> dict[str, Any]:
    """A companion of the manifest as parsed JSON; empty when the manifest lists none."""
    record = _companion(manifest, name)
    return read_json(stored_file(folder, record)) if record else {}


def sampling(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Temperature, top-p and top-k that the model's generation_config.json recommends."""
    values = small_file(manifest, folder, "generation_config.json")
    if not values.get("do_sample"):
        return {}
    keys = ("temperature", "top_p", "top_k")
    return {key: values[key] for key in keys if values.get(key) is not None}


def chat_template(manifest: Manifest, folder: Path) -> str:
    """The chat template; empty when there is none."""
    record = _companion(manifest, "chat_template.jinja")
    if record:
        return stored_file(folder, record).read_text(encoding="utf-8")
    template = small_file(manifest, folder, "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def quantized_grids(artifact: Artifact) -> list[str]:
    """Grids other than plain floats, each once."""
    grids = dict.fromkeys(tensor.grid for tensor in artifact.tensors)
    return [grid for grid in grids if grid not in _FLOATS]


def _companion(manifest: Manifest, name: str) -> FileRecord | None:
    return next((record for record in manifest.companions if record.name == name), None)
