"""How far the numbers of a GGUF are from the checkpoint's: what every reader gets, by `gguf` alone.

    sum of (w' - w)^2 / sum of w^2

over a fixed sample: every quantized matrix of the first, the middle and the last block and outside
of the blocks, of each its first rows, and of a stack of experts its first two.

Shape legend: R rows of the sample (matrices of a stack), I input columns.
"""

import re
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.gguf.layout import Place, gguf_layout, is_float
from tightfit.export.weights import LogicalWeight
from tightfit.pipeline.weights import checkpoint_weights

_ROWS: Final = 512
_EXPERTS: Final = 2
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")


def relative_error(model: Path, file: Path) -> float:
    """Relative squared error of the sample, against the checkpoint in float32."""
    checkpoint = open_checkpoint(model)
    sizes = checkpoint.architecture, checkpoint.dimensions
    weights = checkpoint_weights(checkpoint, dict.fromkeys(tensor_shapes(*sizes), "F32"))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    blocks = sampled_blocks(checkpoint.dimensions.n_layers)
    off = size = 0.0
    for place in gguf_layout(*sizes):
        tensor = stored[place.gguf_name]
        block = _BLOCK.match(place.gguf_name)
        if is_float(tensor.tensor_type) or (block and int(block[1]) not in blocks):
            continue
        original = _original(place, weights[place.checkpoint_name])
        held = gguf.quants.dequantize(tensor.data[: len(original)], tensor.tensor_type)
        off += float(np.square(held.reshape(original.shape) - original, dtype=np.float64).sum())
        size += float(np.square(original, dtype=np.float64).sum())
    return off / size


def sampled_blocks(n_layers: int) -> set[int]:
    """First, middle and last."""
    return {0, n_layers // 2, n_layers - 1}


def _original(place: Place, weight: LogicalWeight) -> NDArray[np.float32]:
    """The sample's rows of a tensor, in the file's order; float32 (R, I) or (R, O, I)."""
    is_stack = len(place.shape) > 2
    count = _EXPERTS if is_stack else _ROWS // place.head_rows * place.head_rows
    rows = weight.rows()(slice(0, min(count, place.shape[0])))
    in_order: NDArray[np.float32] = place.to_gguf(rows.numpy()).astype(np.float32, copy=False)
    return in_order
