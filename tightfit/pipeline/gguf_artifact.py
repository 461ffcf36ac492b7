"""Weights to a GGUF file, read back and recorded."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tightfit import __version__
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.models import find_model
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.integers import to_ggml_rows
from tightfit.export.gguf.layout import Place, encode_float, gguf_layout, mtp_layout
from tightfit.export.gguf.metadata import ImportanceSource, ModelIdentity, model_entries
from tightfit.export.gguf.naming import existing_shards, gguf_name
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.gguf.rope import ROPE_FREQS, rope_frequency_divisors
from tightfit.export.gguf.sampling import sampling_entries
from tightfit.export.gguf.tokenizer import read_tokenizer
from tightfit.export.gguf.writer import GgufTensor, write_gguf
from tightfit.export.manifest import Artifact, TensorRecord, values_sha256
from tightfit.export.weights import (
    FloatWeight,
    LogicalWeight,
    LogicalWeights,
    Rows,
    StackedWeight,
    Weight,
)
from tightfit.pipeline.exactness import check_exact
from tightfit.pipeline.mtp_weights import mtp_weights
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.work import Work
from tightfit.quant.registry import get_grid
from tightfit.targets.formats import ggml_type
from tightfit.targets.grids import INTEGERS
from tightfit.targets.plan import Plan
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, FileType, ggml_file_type
from tightfit.targets.schemes.ggml_types import tensor_bytes

_FLOAT_TYPES = {
    torch.float32: Type.F32,
    torch.float16: Type.F16,
    torch.bfloat16: Type.BF16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactTensor:
    """A tensor to be written, and the numbers that a reader must get back."""

    place: Place | None
    """None for what only the file holds."""
    stored: GgufTensor
    rows: Callable[[], Rows]


def gguf_path(request: ExportRequest, checkpoint: Checkpoint, plan: Plan) -> Path:
    """The (first) file that the export will write."""
    label = plan.file_label or _file_type(checkpoint, plan).label
    return request.output / gguf_name(checkpoint.source.id.rpartition("/")[2], label)


def gguf_paths_in_way(request: ExportRequest, checkpoint: Checkpoint, plan: Plan) -> list[Path]:
    """What already lies where the export will write."""
    return list(existing_shards(gguf_path(request, checkpoint, plan)))


def write_gguf_artifact(work: Work) -> Artifact:
    """Write the file, read it back, record it."""
    path = gguf_path(work.request, work.checkpoint, work.plan)
    drafting = mtp_weights(work.checkpoint) if work.request.keep_mtp else {}
    weights = {**work.weights, **drafting}
    tensors = gguf_tensors(work.checkpoint, weights)
    work.reporter.stage(f"Writing {path.name}")
    with work.reporter.progress(len(tensors), "tensors") as progress:
        files = write_gguf(
            path,
            metadata=gguf_metadata(
                work.checkpoint,
                _file_type(work.checkpoint, work.plan),
                _importance(work),
                n_mtp_layers=work.checkpoint.dimensions.n_mtp_layers if drafting else 0,
            ),
            tensors=[tensor.stored for tensor in tensors],
            split_max_bytes=work.request.split_max_bytes,
            overwrite=True,
            progress=lambda _name, _done, _total: progress.advance(1),
        )
    work.reporter.stage(f"Reading {path.name} back, bit for bit")
    with work.reporter.progress(len(tensors), "tensors") as progress:
        hashes = check_exact(
            path.name,
            ((tensor.name, tensor.chunks()) for tensor in read_tensors(files[0])),
            {tensor.stored.name: tensor.rows for tensor in tensors},
            lambda: progress.advance(1),
        )
    return work.record(
        files=files,
        tensors=[_record(tensor, hashes[tensor.stored.name], work) for tensor in tensors],
        hashes=_checkpoint_hashes(tensors, hashes, weights),
        stored_bytes=sum(
            tensor_bytes(tensor.stored.ggml_type, tensor.stored.shape)
            for tensor in tensors
            if tensor.place is None or tensor.place.checkpoint_name in work.weights
        ),
    )


def gguf_metadata(
    checkpoint: Checkpoint,
    file_type: FileType,
    importance: ImportanceSource | None,
    n_mtp_layers: int = 0,
) -> tuple[Entry, ...]:
    """All keys of the file's header; `n_mtp_layers` are in the file."""
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
            n_mtp_layers=n_mtp_layers,
        ),
        *sampling_entries(checkpoint.path),
        *tokenizer.entries,
    )


def _file_type(checkpoint: Checkpoint, plan: Plan) -> FileType:
    """The scheme's file type; of a mix the nearest in bits; of one grid that of its type."""
    if plan.nearest is not None:
        return FILE_TYPES[plan.nearest]
    any_linear = checkpoint.architecture.block_kind(0, checkpoint.dimensions).linears[0]
    grid = plan.storage[checkpoint.architecture.tensor(0, f"{any_linear}.weight")]
    return ggml_file_type(ggml_type(grid).name)


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

    def data(part: Weight) -> NDArray[np.generic]:
        if isinstance(part, FloatWeight):
            # Not `values()`: a large embedding would be in memory as float32 as well.
            return place.to_gguf(encode_float(part.load().to(part.dtype), kind))
        tensor = part.load()
        if part.grid in INTEGERS:
            return place.to_gguf(to_ggml_rows(tensor))
        return place.to_gguf(np.asarray(get_grid(part.grid).pack(tensor).numpy()))

    return ArtifactTensor(
        place=place,
        stored=GgufTensor(
            name=place.gguf_name,
            shape=place.shape,
            ggml_type=kind,
            loads=[functools.partial(data, part) for part in parts],
        ),
        rows=lambda: _rows(place, weight),
    )


def _rows(place: Place, weight: LogicalWeight) -> Rows:
    """The weight's values in the order of the file."""
    if place.interleaved_heads is None:
        return weight.rows()
    values = torch.from_numpy(place.to_gguf(weight.values().numpy()))
    return lambda rows: values[rows]


def _ggml_type(weight: Weight) -> Type:
    """Vectors are F32 (llama.cpp demands it of norms and biases), whatever they were rounded to."""
    if isinstance(weight, FloatWeight):
        return Type.F32 if len(weight.shape) == 1 else _FLOAT_TYPES[weight.dtype]
    return ggml_type(weight.grid)


def _rope_tensors(checkpoint: Checkpoint) -> list[ArtifactTensor]:
    """llama3's rope scaling, which GGUF keeps as a tensor."""
    dimensions = checkpoint.dimensions
    scaling = dimensions.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return []
    divisors = rope_frequency_divisors(
        scaling, head_dim=dimensions.head_dim, theta=dimensions.rope_theta
    )
    divided = torch.from_numpy(divisors)
    stored = GgufTensor(
        name=ROPE_FREQS, shape=divisors.shape, ggml_type=Type.F32, loads=[lambda: divisors]
    )
    return [ArtifactTensor(place=None, stored=stored, rows=lambda: lambda rows: divided[rows])]


def _importance(work: Work) -> ImportanceSource | None:
    """The calibration as the GGUF's header names it."""
    if work.imatrix is not None:
        return ImportanceSource(
            file=work.imatrix.name,
            dataset=", ".join(work.imatrix.datasets),
            n_entries=work.imatrix.entries,
            n_chunks=work.imatrix.chunks,
        )
    if work.calibration is None:
        return None
    source = Path(work.calibration.options.source).name
    return ImportanceSource(
        file=source,
        dataset=f"{source}, seed {work.calibration.options.seed}",
        n_entries=len(work.reports),
        n_chunks=len(work.calibration.samples),
    )


def _record(tensor: ArtifactTensor, sha256: str, work: Work) -> TensorRecord:
    return TensorRecord(
        name=tensor.stored.name,
        grid=tensor.stored.ggml_type.name,
        shape=tuple(tensor.stored.shape),
        sha256=sha256,
        relative_error=work.relative_errors.get(tensor.place.checkpoint_name)
        if tensor.place
        else None,
    )


def _checkpoint_hashes(
    tensors: list[ArtifactTensor], hashes: dict[str, str], weights: LogicalWeights
) -> dict[str, str]:
    """Hashes by checkpoint name, of values in the checkpoint's row order.

    Rows that GGUF interleaves are hashed from the weights: the file was found equal to them.
    """
    by_name = {}
    for tensor in tensors:
        if tensor.place is None:
            continue
        name = tensor.place.checkpoint_name
        interleaved = tensor.place.interleaved_heads is not None
        by_name[name] = (
            values_sha256([weights[name].values().numpy()])
            if interleaved
            else hashes[tensor.stored.name]
        )
    return by_name
