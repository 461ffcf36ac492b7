"""A model's tensors in the pieces that a GGUF is written in, with the values that readers must get.

A piece is rounded and packed when the writer asks for it.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tightfit.calib.checkpoint import Checkpoint
from tightfit.export.gguf.integers import to_ggml_rows
from tightfit.export.gguf.layout import Place, encode_float, gguf_layout, mtp_layout
from tightfit.export.gguf.rope import ROPE_FREQS, rope_frequency_divisors
from tightfit.export.gguf.writer import GgufTensor, Piece
from tightfit.export.weights import (
    FloatWeight,
    LogicalWeight,
    LogicalWeights,
    Rows,
    StackedWeight,
    Weight,
    tensor_rows,
)
from tightfit.quant.registry import get_grid
from tightfit.targets.formats import ggml_type
from tightfit.targets.grids import INTEGERS

PIECE_WEIGHTS = 1 << 21
"""Of a piece whose rows can be had alone: a tenth of a second of rounding, 8 MB of float32."""
_PIECE_ROWS = 128
"""A multiple of these: a block of an FP8 matrix has 128 rows."""
_FLOAT_TYPES = {
    torch.float32: Type.F32,
    torch.float16: Type.F16,
    torch.bfloat16: Type.BF16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactTensor:
    """A tensor to be written, and where it comes from."""

    place: Place | None
    """None for what only the file holds."""
    stored: GgufTensor


def gguf_tensors(checkpoint: Checkpoint, weights: LogicalWeights) -> list[ArtifactTensor]:
    """All tensors of the file in the model's order; what `weights` has of the layers behind too."""
    sizes = checkpoint.architecture, checkpoint.dimensions
    behind = [place for place in mtp_layout(*sizes) if place.checkpoint_name in weights]
    places = [*gguf_layout(*sizes), *behind]
    model = [_tensor(place, weights[place.checkpoint_name]) for place in places]
    return [*model, *_rope_tensors(checkpoint)]


def _tensor(place: Place, weight: LogicalWeight) -> ArtifactTensor:
    parts = weight.parts if isinstance(weight, StackedWeight) else [weight]
    kind = _ggml_type(parts[0])
    stored = GgufTensor(
        name=place.gguf_name,
        shape=place.shape,
        ggml_type=kind,
        loads=[
            functools.partial(_piece, place, part, kind, rows)
            for part in parts
            for rows in _row_slices(place, part)
        ],
    )
    return ArtifactTensor(place=place, stored=stored)


def _row_slices(place: Place, part: Weight) -> list[slice | None]:
    """The rows of each piece; None: all, where they cannot be had alone."""
    if part.load_rows is None or len(part.shape) == 1:
        return [None]
    least = math.lcm(_PIECE_ROWS, place.head_rows)
    rows = max(1, PIECE_WEIGHTS // part.shape[1] // least) * least
    return [slice(start, start + rows) for start in range(0, part.shape[0], rows)]


def _piece(place: Place, weight: Weight, kind: Type, rows: slice | None) -> Piece:
    data: NDArray[np.generic]
    if isinstance(weight, FloatWeight):
        stored = weight.part(rows)
        data = encode_float(stored, kind)
        chunks = _chunks(place, lambda some: stored[some].float(), len(stored))
    else:
        tensor = weight.part(rows)
        is_integer = weight.grid in INTEGERS
        data = to_ggml_rows(tensor) if is_integer else get_grid(weight.grid).pack(tensor).numpy()
        chunks = _chunks(place, tensor_rows(tensor), tensor.shape[0])
    # What is loaded by rows is small, and its values too: they are made here, in threads.
    return Piece(place.to_gguf(data), chunks if rows is None else list(chunks))


def _chunks(place: Place, values: Rows, n_rows: int) -> Iterator[NDArray[np.float32]]:
    """Values in the order of the file, some rows at a time."""
    heads = max(1, PIECE_WEIGHTS // (place.shape[-1] * place.head_rows))
    step = heads * place.head_rows
    for start in range(0, n_rows, step):
        yield np.asarray(place.to_gguf(values(slice(start, start + step)).numpy()), np.float32)


def _ggml_type(weight: Weight) -> Type:
    """Vectors are F32 (llama.cpp demands it of norms and biases), whatever they were rounded to."""
    if isinstance(weight, FloatWeight):
        return Type.F32 if len(weight.shape) == 1 else _FLOAT_TYPES[weight.dtype]
    return Type(ggml_type(weight.grid))


def _rope_tensors(checkpoint: Checkpoint) -> list[ArtifactTensor]:
    """llama3's rope scaling, which GGUF keeps as a tensor."""
    dimensions = checkpoint.dimensions
    scaling = dimensions.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return []
    divisors = rope_frequency_divisors(
        scaling, head_dim=dimensions.head_dim, theta=dimensions.rope_theta
    )
    piece = Piece(divisors, [divisors])
    stored = GgufTensor(
        name=ROPE_FREQS, shape=divisors.shape, ggml_type=Type.F32, loads=[lambda: piece]
    )
    return [ArtifactTensor(place=None, stored=stored)]
