"""Weights to a GGUF file, read back and recorded."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from gguf import LlamaFileType

from tightfit import __version__
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.models import find_model
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.metadata import ImportanceSource, ModelIdentity, model_entries
from tightfit.export.gguf.naming import existing_shards, gguf_name
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.gguf.sampling import sampling_entries
from tightfit.export.gguf.tokenizer import read_tokenizer
from tightfit.export.gguf.writer import write_gguf
from tightfit.export.gguf.written import Written
from tightfit.export.manifest import Artifact, TensorRecord, values_sha256
from tightfit.pipeline.exactness import check_digests
from tightfit.pipeline.gguf_tensors import ArtifactTensor, gguf_tensors
from tightfit.pipeline.mtp_weights import mtp_weights
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.work import Work
from tightfit.targets.formats import ggml_type
from tightfit.targets.plan import Plan
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, FileType, ggml_file_type

_JOURNAL = "written.jsonl"


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
    written = Written(work.unfinished / _JOURNAL if work.unfinished else None)

    def hashes() -> dict[str, str]:
        names = [tensor.stored.name for tensor in tensors]
        return {name: written.values_sha256(name) for name in names}

    def read_back(files: Sequence[Path]) -> None:
        work.reporter.stage(f"Reading {path.name} back, bit for bit")
        with work.reporter.progress(len(tensors), "tensors") as progress:
            check_digests(read_tensors(files[0]), hashes(), work.threads, progress.advance)

    work.reporter.stage(f"Writing {path.name}")
    with (
        _threads_of_torch(1 if work.threads > 1 else torch.get_num_threads()),
        work.reporter.progress(len(tensors), "tensors") as progress,
    ):
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
            threads=work.threads,
            unfinished=work.unfinished,
            written=written,
            check=read_back,
        )
    return work.record(
        files=files,
        tensors=[_record(of, written.values_sha256(of.stored.name), work) for of in tensors],
        hashes=_checkpoint_hashes(tensors, hashes(), files[0]),
        stored_bytes=sum(
            tensor.stored.size_bytes
            for tensor in tensors
            if tensor.place is None or tensor.place.checkpoint_name in work.weights
        ),
    )


@contextmanager
def _threads_of_torch(count: int) -> Iterator[None]:
    """Threads of each operation, in this thread and in those begun meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
            file_type=_file_number(file_type),
            quantized_by=f"tightfit {__version__}",
            importance=importance,
            n_mtp_layers=n_mtp_layers,
        ),
        *sampling_entries(checkpoint.path),
        *tokenizer.entries,
    )


def _file_number(file_type: FileType) -> LlamaFileType:
    """llama.cpp's number of it."""
    every = "ALL" if file_type.name == "f32" else "MOSTLY"
    return LlamaFileType[f"{every}_{file_type.label}"]


def _file_type(checkpoint: Checkpoint, plan: Plan) -> FileType:
    """The scheme's file type; of a mix the nearest in bits; of one grid that of its type."""
    if plan.nearest is not None:
        return FILE_TYPES[plan.nearest]
    any_linear = checkpoint.architecture.block_kind(0, checkpoint.dimensions).linears[0]
    grid = plan.storage[checkpoint.architecture.tensor(0, f"{any_linear}.weight")]
    return ggml_file_type(ggml_type(grid).name)


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
    tensors: list[ArtifactTensor], hashes: Mapping[str, str], file: Path
) -> dict[str, str]:
    """Hashes by checkpoint name, of values in the checkpoint's row order."""
    places = {tensor.stored.name: tensor.place for tensor in tensors if tensor.place}
    by_name = {place.checkpoint_name: hashes[name] for name, place in places.items()}
    for stored in read_tensors(file):
        place = places.get(stored.name)
        if place is not None and place.interleaved_heads is not None:
            values = np.asarray(place.from_gguf(stored.values()), np.float32)
            by_name[place.checkpoint_name] = values_sha256([values])
    return by_name
