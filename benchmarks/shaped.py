"""A checkpoint with the shapes of a registered model and random weights, for time and memory.

    python -m benchmarks.shaped MODEL FOLDER

The tokenizer is tiny-r1's, so calibration uses only the first 512 of the model's tokens.
"""

import json
import math
import shutil
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from tightfit.calib.architecture import architecture_of
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_ARCHITECTURES = {"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
"""What the genai builder asks of a config.json beside the sizes."""
TENSORS_PER_FILE = 24
"""Two blocks of a dense model: files of about 200 MB for 1.5B weights."""


def shaped_checkpoint(model: str, folder: Path) -> Path:
    """Write it in bfloat16 and return the folder; one file in memory at a time."""
    known = find_model(model)
    assert known is not None, model
    dimensions = known.dimensions
    shapes = tensor_shapes(architecture_of(dimensions.model_type), dimensions)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    names = list(shapes)
    chunks = [names[at : at + TENSORS_PER_FILE] for at in range(0, len(names), TENSORS_PER_FILE)]
    placed: dict[str, str] = {}
    for number, chunk in enumerate(chunks):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: _random(shapes[name], generator) for name in chunk}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(chunk, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": placed})
    )
    (folder / "config.json").write_text(json.dumps(_config(known.id) | _ARCHITECTURES))
    for name in TOKENIZER_FILES:
        shutil.copy(locate_model(EMBEDDED_NAME).path / name, folder / name)
    return folder


def _config(model_id: str) -> dict[str, object]:
    registered = files("tightfit.calib").joinpath("models.toml").read_text(encoding="utf-8")
    (config,) = (
        entry["config"] for entry in tomllib.loads(registered)["model"] if entry["id"] == model_id
    )
    return dict(config)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    width = math.sqrt(shape[-1])
    return (torch.randn(shape, generator=generator) / width).to(torch.bfloat16)


if __name__ == "__main__":
    shaped_checkpoint(sys.argv[1], Path(sys.argv[2]))
