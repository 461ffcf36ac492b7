"""A checkpoint's own numbers as an ONNX model, in a folder as `tightfit export` lays it out."""

import shutil
from pathlib import Path

from tightfit.calib.checkpoint import COMPANIONS, open_checkpoint
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import Weights
from tightfit.pipeline.weights import checkpoint_weights


def onnx_folder(
    checkpoint_folder: Path,
    folder: Path,
    *,
    dialect: Dialect = Dialect.ORT,
    precision: Precision = Precision.FLOAT32,
    weights: Weights | None = None,
    names: tuple[str, str] = ("model.onnx", "model.onnx.data"),
) -> Path:
    """Write the model into `folder`/onnx, the tokenizer at the root; returns the model's path."""
    checkpoint = open_checkpoint(checkpoint_folder)
    if weights is None:
        kind = "F32" if precision is Precision.FLOAT32 else "F16"
        shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
        weights = checkpoint_weights(checkpoint, dict.fromkeys(shapes, kind))
    graph = build_graph(
        checkpoint.dimensions,
        checkpoint.architecture,
        weights,
        OnnxOptions(dialect=dialect, precision=precision),
        data_file=names[1],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (checkpoint_folder / name).is_file():
            shutil.copy(checkpoint_folder / name, folder / name)
    return write_onnx(folder / "onnx" / names[0], graph, overwrite=True)[0]
