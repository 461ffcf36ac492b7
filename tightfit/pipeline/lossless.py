"""The unquantized checkpoint as a GGUF that loses nothing: the baseline in the same runtime."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.gguf.writer import write_gguf
from tightfit.pipeline.gguf_artifact import gguf_metadata
from tightfit.pipeline.gguf_tensors import gguf_tensors
from tightfit.pipeline.weights import checkpoint_weights
from tightfit.targets.schemes.ggml_file_types import ggml_file_type

_EXACT = {torch.bfloat16: "BF16", torch.float16: "F16"}


@contextlib.contextmanager
def lossless_gguf(checkpoint: Checkpoint, folder: Path | None = None) -> Iterator[Path]:
    """A temporary GGUF of the checkpoint in its own precision, in `folder` or the system's."""
    with tempfile.TemporaryDirectory(prefix="tightfit-", dir=folder) as temporary:
        path = Path(temporary) / "baseline.gguf"
        storage = lossless_storage(checkpoint)
        file_type = ggml_file_type(storage[checkpoint.architecture.embedding].lower())
        tensors = gguf_tensors(checkpoint, checkpoint_weights(checkpoint, storage))
        write_gguf(
            path,
            metadata=gguf_metadata(checkpoint, file_type, importance=None),
            tensors=[tensor.stored for tensor in tensors],
        )
        yield path


def lossless_storage(checkpoint: Checkpoint) -> dict[str, str]:
    """By logical name, what loses nothing: F32 for vectors and routers, else the stored type.

    Nothing but F32 holds the numbers of FP8 weights.
    """
    architecture, dimensions = checkpoint.architecture, checkpoint.dimensions
    routing = {
        architecture.tensor(layer, parameter)
        for layer in range(dimensions.n_layers)
        for parameter in architecture.block_kind(layer, dimensions).routing
    }
    return {
        name: "F32"
        if len(shape) == 1 or name in routing
        else _EXACT.get(checkpoint.stored_dtype(name), "F32")
        for name, shape in tensor_shapes(architecture, dimensions).items()
    }
