"""The runtime that an artifact ships for: llama.cpp, onnxruntime or TensorRT."""

from pathlib import Path

import torch

from tightfit.errors import ArtifactError, MissingPackageError, RuntimeFailureError, TightfitError
from tightfit.export.manifest import Artifact
from tightfit.export.onnx.onnxruntime import require_onnxruntime
from tightfit.runtimes.base import Runtime
from tightfit.runtimes.llamacpp import binding
from tightfit.runtimes.onnx.session import CPU, SessionOptions

SUFFIXES = {".gguf": "gguf", ".onnx": "onnx"}
"""Format of a file that is given without its folder."""


def unavailable(format_name: str) -> TightfitError | None:
    """Why this machine cannot run any artifact of a format: a package or a GPU is missing."""
    try:
        if format_name == "gguf":
            binding.check_package()
        elif format_name == "onnx":
            require_onnxruntime()
        elif not torch.cuda.is_available():
            return RuntimeFailureError(
                "TensorRT needs an NVIDIA GPU and torch for CUDA, and this machine has not both",
                hint="on the machine that has the card: `tightfit verify --on-gpu`, then "
                "`tightfit drift`",
            )
    except MissingPackageError as error:
        return error
    return None


def format_of(path: Path) -> str:
    """The format of a single file, by its name; raises `ArtifactError`."""
    if path.suffix not in SUFFIXES:
        raise ArtifactError(
            f"{path.name} is no artifact that runs by itself",
            allowed=f"a file that ends in {' or '.join(SUFFIXES)}, or a folder written by "
            "`tightfit export`",
        )
    return SUFFIXES[path.suffix]


def open_file(path: Path, *, context_tokens: int, provider: str = CPU) -> Runtime:
    """Run a .gguf or .onnx file; an .onnx has its tokenizer beside it or one folder above.

    Raises `ArtifactError`, `MissingPackageError`, `RuntimeFailureError` and `UsageError`.
    """
    if format_of(path) == "gguf":
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
    return open_file(path, context_tokens=context_tokens, provider=provider)
