"""Multi-token-prediction layers of a checkpoint as a GGUF holds them: floats, on no grid."""

import torch

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.logical import stored_names
from tightfit.calib.shapes import Shape, mtp_shapes
from tightfit.export.weights import LogicalWeight, LogicalWeights
from tightfit.pipeline.weights import checkpoint_float

_STORAGE = {torch.float32: "F32", torch.float16: "F16"}
"""By the checkpoint's type; BF16 is also for FP8, whose numbers it rounds by up to 2**-9: a draft
of tokens is all that comes of them."""


def mtp_weights(checkpoint: Checkpoint) -> LogicalWeights:
    """Their tensors by logical name; none where the checkpoint has no such layers.

    Vectors and routers are F32. Copies of the embedding and the head that are equal to them are
    left out, as llama.cpp then takes the model's own.
    """
    if not checkpoint.mtp_names():
        return {}
    architecture, dimensions = checkpoint.architecture, checkpoint.dimensions
    first, last = dimensions.n_layers, dimensions.n_layers + dimensions.n_mtp_layers
    routing = {
        architecture.tensor(layer, parameter)
        for layer in range(first, last)
        for parameter in architecture.block_kind(layer, dimensions).routing
    }
    copies = {
        architecture.tensor(layer, parameter): original
        for layer in range(first, last)
        for parameter, original in architecture.mtp_copies.items()
    }

    def weight(name: str, shape: Shape) -> LogicalWeight:
        stored_dtype = checkpoint.stored_dtype(stored_names(name, dimensions)[0])
        is_f32 = len(shape) == 1 or name in routing
        storage = "F32" if is_f32 else _STORAGE.get(stored_dtype, "BF16")
        return checkpoint_float(checkpoint, name, shape, storage)

    return {
        name: weight(name, shape)
        for name, shape in mtp_shapes(architecture, dimensions).items()
        if name not in copies or _differs(checkpoint, name, copies[name])
    }


def _differs(checkpoint: Checkpoint, copy: str, original: str) -> bool:
    return copy in checkpoint.stored and not checkpoint.same_bytes(copy, original)
