"""Where each tensor of a checkpoint goes in a GGUF, and back.

The map is one to one but for llama.cpp's interleaved q and k rows (`rope`); rows move whole, so
quantized rows keep their bytes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import mtp_shapes, tensor_shapes
from tightfit.export.gguf.rope import permute_rope_rows

_FLOAT_TYPES = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A tensor's name and row order in a GGUF."""

    checkpoint_name: str
    gguf_name: str
    shape: tuple[int, ...]
    """Rows before columns."""
    interleaved_heads: int | None
    """Heads whose rows are interleaved; None: rows keep their order."""

    @property
    def head_rows(self) -> int:
        """Rows that must stay together: of a head whose rows are interleaved."""
        return self.shape[0] // self.interleaved_heads if self.interleaved_heads else 1

    def to_gguf(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Rows (or a bias) of whole heads in GGUF order."""
        if self.interleaved_heads is None:
            return rows
        return permute_rope_rows(rows, len(rows) // self.head_rows)

    def from_gguf(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Rows in the checkpoint's order: the inverse of `to_gguf`."""
        if self.interleaved_heads is None:
            return rows
        original = np.empty_like(rows)
        original[self.to_gguf(np.arange(rows.shape[0]))] = rows
        return original


def gguf_layout(architecture: Architecture, dimensions: ModelDimensions) -> tuple[Place, ...]:
    """Every tensor of the model, in the model's order."""
    names = architecture.gguf_names(dimensions)
    heads = {"attn_q": dimensions.n_heads, "attn_k": dimensions.n_kv_heads}

    def interleaved(gguf_name: str) -> int | None:
        if not architecture.permute_rope or not gguf_name.startswith("blk."):
            return None
        return heads.get(gguf_name.split(".")[2])

    return tuple(
        Place(
            checkpoint_name=name,
            gguf_name=names[name],
            shape=shape,
            interleaved_heads=interleaved(names[name]),
        )
        for name, shape in tensor_shapes(architecture, dimensions).items()
    )


def mtp_layout(architecture: Architecture, dimensions: ModelDimensions) -> tuple[Place, ...]:
    """Every tensor of the multi-token-prediction layers."""
    names = architecture.mtp_gguf_names(dimensions)
    return tuple(
        Place(checkpoint_name=name, gguf_name=names[name], shape=shape, interleaved_heads=None)
        for name, shape in mtp_shapes(architecture, dimensions).items()
    )


def is_float(ggml_type: Type) -> bool:
    """Whether the type stores plain floating-point numbers."""
    return ggml_type in _FLOAT_TYPES


def encode_float(values: Tensor, ggml_type: Type) -> NDArray[np.generic]:
    """Values in a float type; bfloat16, which NumPy lacks, as bytes (..., 2 * width)."""
    stored = values.to(_FLOAT_TYPES[ggml_type]).contiguous()
    if ggml_type is Type.BF16:
        return np.asarray(stored.view(torch.uint8).numpy())
    return np.asarray(stored.numpy())
