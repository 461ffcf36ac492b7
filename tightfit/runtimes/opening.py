"""The runtime that a format is for: llama.cpp, onnxruntime, TensorRT or transformers."""

import importlib.util
from pathlib import Path

import torch

from tightfit.calib.config import CONFIG_NAME
from tightfit.errors import ArtifactError, MissingPackageError, RuntimeFailureError, TightfitError
from tightfit.export.manifest import Artifact
from tightfit.export.onnx.onnxruntime import require_onnxruntime
from tightfit.runtimes.base import Runtime
from tightfit.runtimes.llamacpp import binding
from tightfit.runtimes.onnx.session import CPU, SessionOptions
from tightfit.targets.formats import CHECKPOINT_FORMATS

_CHECKPOINT_PACKAGES = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
}
"""What transformers loads a quantized checkpoint through."""
SUFFIXES = {".gguf": "gguf", ".onnx": "onnx"}
"""Format of a file that is given without its folder."""
SAFETENSORS = "safetensors"
"""Format of a checkpoint folder as transformers reads it."""


def unavailable(format_name: str) -> TightfitError | None:
    """Why this machine cannot run any artifact of a format: a package or a GPU is missing."""
    try:
        if format_name == "gguf":
            binding.check_package()
        elif format_name == "onnx":
            require_onnxruntime()
        elif format_name == "tensorrt" and not torch.cuda.is_available():
            return RuntimeFailureError(
                "TensorRT needs an NVIDIA GPU and torch for CUDA, and this machine has not both",
                hint="on the machine that has the card: `tightfit verify --on-gpu`, then "
                "`tightfit drift`",
            )
        elif format_name in CHECKPOINT_FORMATS:
            return _checkpoint_unavailable(format_name)
    except MissingPackageError as error:
        return error
    return None


def _checkpoint_unavailable(format_name: str) -> TightfitError | None:
    """Transformers runs checkpoints through the packages that know their formats."""
    package = _CHECKPOINT_PACKAGES.get(format_name)
    if package is None:
        return RuntimeFailureError(
            f"transformers does not run {format_name} checkpoints",
            hint="vLLM or TensorRT-LLM do, on a GPU: serve the folder there and give --endpoint",
        )
    if importlib.util.find_spec(package) is None:
        return MissingPackageError(
            f"transformers needs the package {package} to run {format_name} checkpoints",
            hint=f"pip install {package}; or serve the folder with vLLM and give --endpoint",
        )
    return None


def format_of(path: Path) -> str:
    """The format of a file, by its name, or of a checkpoint folder; raises `ArtifactError`."""
    if path.is_dir():
        if (path / CONFIG_NAME).is_file() and any(path.glob("*.safetensors")):
            return SAFETENSORS
    elif path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    raise ArtifactError(
        f"{path.name} is no artifact that runs by itself",
        allowed=f"a file that ends in {' or '.join(SUFFIXES)}, a folder with {CONFIG_NAME} and "
        "*.safetensors, or a folder written by `tightfit export`",
    )


def open_file(
    path: Path, *, context_tokens: int, provider: str = CPU, device: str = "cpu"
) -> Runtime:
    """Run a .gguf or .onnx file or a checkpoint folder.

    An .onnx has its tokenizer beside it or one folder above. `provider` is onnxruntime's, `device`
    the torch device of a checkpoint.

    Raises `ArtifactError`, `MissingPackageError`, `RuntimeFailureError` and `UsageError`.
    """
    format_name = format_of(path)
    if format_name == SAFETENSORS:
        from tightfit.runtimes.transformers import TransformersModel

        return TransformersModel(path, context_tokens=context_tokens, device=device)
    if format_name == "gguf":
        from tightfit.runtimes.llamacpp import LlamaCpp

        return LlamaCpp(path, context_tokens=context_tokens)
    from tightfit.runtimes.onnx import OnnxModel

    return OnnxModel(path, context_tokens=context_tokens, options=SessionOptions(provider=provider))


def open_artifact(
    folder: Path, artifact: Artifact, *, context_tokens: int, provider: str = CPU
) -> Runtime:
    """Run an artifact of an exported folder; raises what `open_file` raises."""
    if artifact.format == "tensorrt":
        from tightfit.runtimes.tensorrt.model import open_engine

        return open_engine(folder, artifact, context_tokens=context_tokens)
    path = folder / artifact.files[0].name
    if artifact.format in CHECKPOINT_FORMATS:
        path = path.parent
    return open_file(path, context_tokens=context_tokens, provider=provider)
