"""Holding a checkpoint against what its config promises, from headers alone.

Every parameter of the architecture must be there, in the right shape and in a type that we read;
nothing may be there that no part of the model reads, since it would be lost without a word.
"""

import torch

from tightfit.calib.architecture import Architecture
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.config import SEE_MODELS
from tightfit.calib.packed.check import check_parts, check_whole
from tightfit.calib.shapes import Shape, mtp_shapes, stored_shapes, tensor_shapes
from tightfit.calib.stored_precision import already_quantized
from tightfit.calib.tensor_index import shorten
from tightfit.errors import CheckpointError

PLAIN_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PACKED = {  # tensors that only a quantized checkpoint has
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors, packed",
    ".weight.absmax": "bitsandbytes",
    ".pre_quant_scale": "ModelOpt, with inputs that are scaled before a linear reads them",
}
_DERIVED = (".rotary_emb.inv_freq",)  # buffers that old versions saved and every reader recomputes
ACTIVATION_SCALES = (".input_scale", ".q_scale", ".k_scale", ".v_scale")  # say nothing of weights


def validate(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise `CheckpointError` for the first way in which the checkpoint is not the model."""
    dimensions = checkpoint.dimensions
    _check_variant(checkpoint)
    shapes = stored_shapes(tensor_shapes(architecture, dimensions), dimensions)
    _check_packing(checkpoint)
    _check_complete(checkpoint, shapes)
    shapes |= _mtp_layer_shapes(checkpoint, architecture)
    for name, shape in shapes.items():
        _check_tensor(checkpoint, name, shape)
    _check_nothing_left(checkpoint, shapes)
    _check_tied_head(checkpoint, architecture)


def _check_variant(checkpoint: Checkpoint) -> None:
    """Refuse what DeepSeek-V3 can do in transformers and no released model does."""
    dimensions, origin = checkpoint.dimensions, checkpoint.config.origin
    if dimensions.moe is None:
        return
    if dimensions.attention_bias:
        raise CheckpointError(
            f"{origin}: 'attention_bias' is true",
            allowed="allowed with deepseek_v3: false, as in R1",
            hint=SEE_MODELS,
        )
    if not dimensions.moe.n_shared_experts:
        raise CheckpointError(
            f"{origin}: 'n_shared_experts' is 0",
            allowed="allowed: 1 or more, as in R1",
            hint=SEE_MODELS,
        )


def _check_packing(checkpoint: Checkpoint) -> None:
    """Refuse what only another quantization stores, and parts that do not belong together."""
    scheme = checkpoint.packed
    for name in checkpoint.stored:
        for suffix, method in _PACKED.items():
            if name.endswith(suffix) and (scheme is None or suffix not in scheme.suffixes):
                raise already_quantized(f"{checkpoint.path}: {name!r}", method)
    if scheme is not None:
        check_whole(scheme, checkpoint.stored, origin=checkpoint.config.origin)


def _check_complete(checkpoint: Checkpoint, shapes: dict[str, Shape]) -> None:
    held = set(checkpoint.names())
    missing = [name for name in shapes if name not in held]
    if missing == [checkpoint.architecture.head]:
        raise CheckpointError(
            f"{checkpoint.path}: {missing[0]!r} is missing, and config.json does not tie it to the "
            "embedding",
            hint='if the model shares the two, set "tie_word_embeddings": true in config.json',
        )
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} of the {len(shapes)} tensors that config.json "
            f"promises are missing: {shorten(missing)}",
            hint="the checkpoint is incomplete, or config.json belongs to another model",
        )


def _mtp_layer_shapes(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Shape]:
    """What is stored of the multi-token-prediction layers: all of it, or nothing."""
    held = set(checkpoint.mtp_names())
    if not held:
        return {}
    dimensions = checkpoint.dimensions
    shapes = stored_shapes(mtp_shapes(architecture, dimensions), dimensions)
    copies = tuple(f".{name}" for name in architecture.mtp_copies)
    missing = [name for name in shapes if name not in held and not name.endswith(copies)]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} of the {len(shapes)} tensors of the "
            f"multi-token-prediction layer are missing: {shorten(missing)}",
            allowed="the layer is there whole, or not at all",
            hint="download the checkpoint again",
        )
    return {name: shape for name, shape in shapes.items() if name in held}


def _check_tensor(checkpoint: Checkpoint, name: str, shape: Shape) -> None:
    if checkpoint.packed is not None and checkpoint.is_packed(name):
        check_parts(checkpoint.packed, checkpoint.stored, name, shape)
        return
    stored = checkpoint.stored[name]
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.file}: {name!r} has the shape {stored.shape}",
            allowed=f"config.json promises {shape}",
            hint="config.json and the weights are of different models: download both again",
        )
    if stored.dtype == torch.float8_e4m3fn and checkpoint.float8 is not None and len(shape) == 2:
        _check_scale(checkpoint, name, shape)
    elif stored.dtype not in PLAIN_DTYPES:
        raise CheckpointError(
            f"{stored.file}: {name!r} is stored as {stored.dtype}",
            allowed="weights are read from BF16, F16 and F32, and from FP8 E4M3 where config.json "
            "has a quantization_config that says how it is scaled",
            hint="give the original checkpoint: see `tightfit models`",
        )


def _check_scale(checkpoint: Checkpoint, name: str, shape: Shape) -> None:
    assert checkpoint.float8 is not None
    scale_name = checkpoint.float8.scale_name(name)
    scale = checkpoint.stored.get(scale_name)
    if scale is None:
        raise CheckpointError(
            f"{checkpoint.stored[name].file}: {name!r} is FP8, and its scale {scale_name!r} is "
            "missing",
            hint="the weights mean nothing without it: download the checkpoint again",
        )
    allowed = checkpoint.float8.scale_shapes(shape)
    if scale.shape not in allowed:
        raise CheckpointError(
            f"{scale.file}: {scale_name!r} has the shape {scale.shape}",
            allowed=f"for a weight of {shape}: " + " or ".join(map(str, allowed)),
            hint="quantization_config and the weights do not belong together",
        )
    if scale.dtype not in PLAIN_DTYPES:
        raise CheckpointError(
            f"{scale.file}: {scale_name!r} is stored as {scale.dtype}",
            allowed="scales are read from BF16, F16 and F32",
            hint="give the original checkpoint: see `tightfit models`",
        )


def _check_nothing_left(checkpoint: Checkpoint, shapes: dict[str, Shape]) -> None:
    ignorable = _DERIVED + (ACTIVATION_SCALES if checkpoint.is_quantized else ())
    head = (checkpoint.architecture.head,) if checkpoint.tied_head else ()
    known = shapes.keys() | set(head)
    left = [
        name for name in checkpoint.names() if name not in known and not name.endswith(ignorable)
    ]
    if left:
        raise CheckpointError(
            f"{checkpoint.path}: {len(left)} tensors that no part of a "
            f"{checkpoint.dimensions.model_type} model of this config reads: {shorten(left)}",
            allowed="an artifact would silently lack them",
            hint="merge adapters first; if config.json was edited, restore it",
        )


def _check_tied_head(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """A tied checkpoint may store its head as well, as long as it is the same matrix."""
    scheme = checkpoint.packed
    is_packed = scheme is not None and scheme.holds(architecture.head, checkpoint.stored)
    if checkpoint.tied_head and is_packed:
        raise CheckpointError(
            f"{checkpoint.path}: config.json ties {architecture.head!r} to the embedding, and it "
            "is packed by itself",
            hint='set "tie_word_embeddings": false in config.json if the head is meant',
        )
    stored = checkpoint.stored.get(architecture.head)
    if not checkpoint.tied_head or stored is None:
        return
    if not checkpoint.same_bytes(architecture.head, architecture.embedding):
        raise CheckpointError(
            f"{stored.file}: config.json ties {architecture.head!r} to the embedding, and the "
            "two differ",
            hint='set "tie_word_embeddings": false in config.json if the head is meant',
        )
