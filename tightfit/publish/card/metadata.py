"""The front matter of the card, as the Hub reads it.

`base_model` is the checkpoint that was quantized; a folder has none, since a link would lead to
nothing. `library_name` is set where the repository's root is what that library loads by name:
transformers for a checkpoint, Transformers.js for its layout. GGUF and ONNX are no libraries to the
Hub: it finds their files itself, and a library would only add a wrong snippet.

Source: huggingface.co/docs/hub/model-cards, and of huggingface.js `model-libraries.ts`.
"""

import re
from typing import Any, Final

from huggingface_hub import ModelCardData

from tightfit.export.manifest import Artifact, Manifest
from tightfit.publish.card.layout import checkpoints, of_format, quantized_grids, subfolder
from tightfit.publish.card.model import BaseModel
from tightfit.publish.card.results import Drift, index_results
from tightfit.targets.profile import list_targets

_BITS: Final = re.compile(r"int(\d+)-")
_JS_DATA_SUFFIX: Final = ".onnx_data"
"""Of the data file in Transformers.js' layout; onnxruntime-genai's ends in `.onnx.data`."""


def front_matter(manifest: Manifest, base: BaseModel, drift: Drift, repo: str) -> str:
    """YAML, without the lines of dashes around it."""
    fields: dict[str, Any] = {
        "base_model": base.hub_id,
        "base_model_relation": "quantized" if base.hub_id else None,
        "library_name": _library(manifest),
        "license": base.license,
        "pipeline_tag": "text-generation",
        "language": base.language,
        "quantized_by": repo.partition("/")[0],
        "tags": _tags(manifest),
    }
    results = index_results(drift)
    if results:
        fields |= {"model_name": repo.rpartition("/")[2], "eval_results": results}
    data = ModelCardData(**{key: value for key, value in fields.items() if value is not None})
    return data.to_yaml(original_order=list(fields))


def is_for_transformers_js(artifact: Artifact) -> bool:
    """Whether an ONNX artifact has the file names that Transformers.js asks for."""
    return any(record.name.endswith(_JS_DATA_SUFFIX) for record in artifact.files)


def _library(manifest: Manifest) -> str | None:
    if any(not subfolder(made) for made in checkpoints(manifest) if made.format != "modelopt"):
        return "transformers"
    onnx = of_format(manifest, "onnx")
    return "transformers.js" if onnx and is_for_transformers_js(onnx) else None


def _tags(manifest: Manifest) -> list[str]:
    tags = ["tightfit", *(made.format for made in manifest.artifacts)]
    for made in manifest.artifacts:
        # A mix of grids has no one number of bits, and the Hub reads a GGUF's by itself.
        grids = quantized_grids(made)
        if made.format != "gguf" and len(grids) == 1:
            found = _BITS.match(grids[0])
            tags.append(f"{found[1]}-bit" if found else grids[0].partition("-")[0])
    if manifest.target in list_targets():
        tags.append(manifest.target)
    return list(dict.fromkeys(tags))
