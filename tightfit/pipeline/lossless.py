"""The unquantized checkpoint as a GGUF that loses nothing: the baseline in the same runtime."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tightfit.calib.checkpoint import Checkpoint
from tightfit.export.gguf.writer import write_gguf
from tightfit.pipeline.gguf_artifact import float_tensors, gguf_metadata, lossless_types
from tightfit.targets.schemes.ggml_file_types import ggml_file_type


@contextlib.contextmanager
def lossless_gguf(checkpoint: Checkpoint, folder: Path | None = None) -> Iterator[Path]:
    """A temporary GGUF of the checkpoint in its own precision, in `folder` or the system's."""
    with tempfile.TemporaryDirectory(prefix="tightfit-", dir=folder) as temporary:
        path = Path(temporary) / "baseline.gguf"
        types = lossless_types(checkpoint)
        matrix_type = types["token_embd.weight"].name.lower()
        tensors = float_tensors(checkpoint, types)
        write_gguf(
            path,
            metadata=gguf_metadata(checkpoint, ggml_file_type(matrix_type), importance=None),
            tensors=[tensor.stored for tensor in tensors],
        )
        yield path
