"""From finished units (or a plain checkpoint) to a GGUF file."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from tightfit import __version__
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.models import find_model
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.layout import Place, encode_float, float_values, gguf_layout
from tightfit.export.gguf.metadata import ImportanceSource, ModelIdentity, model_entries
from tightfit.export.gguf.rope import ROPE_FREQS, rope_frequency_divisors
from tightfit.export.gguf.sampling import sampling_entries
from tightfit.export.gguf.tokenizer import read_tokenizer
from tightfit.export.gguf.writer import GgufTensor
from tightfit.pipeline.job import Job
from tightfit.quant.registry import get_grid
from tightfit.targets.schemes.ggml_file_types import FileType

_EXACT_TYPES = {torch.bfloat16: Type.BF16, torch.float16: Type.F16}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactTensor:
    """A tensor to be written, and the numbers that a reader must get back."""

    checkpoint_name: str
    """Empty for what only the file holds."""
    stored: GgufTensor
    values: Callable[[], NDArray[np.float32]]


def gguf_metadata(
    checkpoint: Checkpoint, file_type: FileType, importance: ImportanceSource | None
) -> tuple[Entry, ...]:
    """All keys of the file's header."""
    known = find_model(checkpoint.source.id)
    tokenizer = read_tokenizer(checkpoint.path, vocab_size=checkpoint.dimensions.vocab_size)
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return (
        *model_entries(
            checkpoint.architecture.gguf_arch,
            checkpoint.dimensions,
            ModelIdentity(
                id=checkpoint.source.id,
                license=known.license.lower() if known else None,
                on_hub=checkpoint.source.revision is not None,
            ),
            n_parameters=count_parameters(shapes),
            file_type=file_type.number,
            quantized_by=f"tightfit {__version__}",
            importance=importance,
        ),
        *sampling_entries(checkpoint.path),
        *tokenizer.entries,
    )


def quantized_tensors(
    checkpoint: Checkpoint, types: Mapping[str, Type], job: Job, units: Sequence[str]
) -> list[ArtifactTensor]:
    """The tensors of a finished job; `types` is by GGUF name."""
    # Tensors come in the order of the units, so each unit is read once.
    load = functools.lru_cache(maxsize=1)(job.load)
    unit_of = {name: unit for unit in units for name in load(unit).names}

    def tensor(place: Place) -> ArtifactTensor:
        name, kind = place.checkpoint_name, types[place.gguf_name]

        def data() -> NDArray[np.generic]:
            packed = load(unit_of[name]).quantized.get(name)
            if packed is None:
                return encode_float(load(unit_of[name]).plain[name], kind)
            return np.asarray(packed.data.numpy())

        def values() -> Tensor:
            packed = load(unit_of[name]).quantized.get(name)
            if packed is None:
                return float_values(load(unit_of[name]).plain[name], kind)
            grid = get_grid(packed.grid)
            return grid.dequantize(grid.unpack(packed.data, packed.shape))

        return _artifact_tensor(place, kind, data, values)

    return _all_tensors(checkpoint, tensor)


def float_tensors(checkpoint: Checkpoint, types: Mapping[str, Type]) -> list[ArtifactTensor]:
    """The checkpoint's own tensors in float types; `types` is by GGUF name."""

    def tensor(place: Place) -> ArtifactTensor:
        name, kind = place.checkpoint_name, types[place.gguf_name]
        return _artifact_tensor(
            place,
            kind,
            lambda: encode_float(checkpoint.load(name), kind),
            lambda: float_values(checkpoint.load(name), kind),
        )

    return _all_tensors(checkpoint, tensor)


def lossless_types(checkpoint: Checkpoint) -> dict[str, Type]:
    """By GGUF name, the types that lose nothing: F32 for vectors, the stored type for matrices."""
    return {
        place.gguf_name: Type.F32
        if len(place.shape) == 1
        else _EXACT_TYPES.get(checkpoint.stored_dtype(place.checkpoint_name), Type.F32)
        for place in gguf_layout(checkpoint.architecture, checkpoint.dimensions)
    }


def _all_tensors(
    checkpoint: Checkpoint, tensor: Callable[[Place], ArtifactTensor]
) -> list[ArtifactTensor]:
    places = gguf_layout(checkpoint.architecture, checkpoint.dimensions)
    return [*map(tensor, places), *_rope_tensors(checkpoint)]


def _artifact_tensor(
    place: Place,
    kind: Type,
    data: Callable[[], NDArray[np.generic]],
    values: Callable[[], Tensor],
) -> ArtifactTensor:
    return ArtifactTensor(
        checkpoint_name=place.checkpoint_name,
        stored=GgufTensor(
            name=place.gguf_name,
            shape=place.shape,
            ggml_type=kind,
            load=lambda: place.to_gguf(data()),
        ),
        values=lambda: np.asarray(place.to_gguf(values().numpy()), dtype=np.float32),
    )


def _rope_tensors(checkpoint: Checkpoint) -> list[ArtifactTensor]:
    """llama3's rope scaling, which GGUF keeps as a tensor."""
    dimensions = checkpoint.dimensions
    scaling = dimensions.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return []
    divisors = rope_frequency_divisors(
        scaling, head_dim=dimensions.head_dim, theta=dimensions.rope_theta
    )
    stored = GgufTensor(
        name=ROPE_FREQS, shape=divisors.shape, ggml_type=Type.F32, load=lambda: divisors
    )
    return [ArtifactTensor(checkpoint_name="", stored=stored, values=lambda: divisors)]
