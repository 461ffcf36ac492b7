"""`tightfit export`: checkpoint -> plan -> walk -> GGUF -> read back -> manifest."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Type

from tightfit.calib.calibration import CalibrationSet, load_calibration
from tightfit.calib.checkpoint import COMPANIONS, Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.models import find_model
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.calib.validate import validate
from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.layout import gguf_layout, is_float
from tightfit.export.gguf.metadata import ImportanceSource
from tightfit.export.gguf.naming import existing_shards, gguf_name
from tightfit.export.gguf.writer import write_gguf
from tightfit.export.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
    write_manifest,
)
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.exactness import read_back
from tightfit.pipeline.gguf_artifact import (
    ArtifactTensor,
    float_tensors,
    gguf_metadata,
    quantized_tensors,
)
from tightfit.pipeline.job import FOLDER as JOB_FOLDER
from tightfit.pipeline.job import Job, LinearReport
from tightfit.pipeline.record import Outcome, computing_versions, record_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.self_traces import is_self, self_calibration
from tightfit.pipeline.walk import Walk
from tightfit.quant.registry import get_grid
from tightfit.reporter import Reporter
from tightfit.targets.candidates import gguf_shapes, scheme_types
from tightfit.targets.plan import Plan, make_plan, refuse_oversized
from tightfit.targets.profile import Target, load_target
from tightfit.targets.schemes.ggml_file_types import ggml_file_type


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export made."""

    folder: Path
    plan: Plan
    manifest: Manifest | None
    """None after a dry run."""


def run_export(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Export a checkpoint for a target.

    An interrupted export continues from its finished units when it is asked for again.
    Raises `CheckpointError`, `DoesNotFitError`, `CalibrationError`, `QuantizationError`,
    `ArtifactError` and `UsageError`.
    """
    usable_device(request.device)
    target = load_target(request.target)
    known = _plan_known(request, target)
    if known is not None and request.dry_run:
        reporter.info(known.reason)
        return ExportResult(folder=request.output, plan=known, manifest=None)
    reporter.stage("Reading the checkpoint")
    checkpoint = open_checkpoint(locate_model(request.model, revision=request.revision))
    validate(checkpoint, checkpoint.architecture)
    plan = _plan(request, checkpoint.dimensions, checkpoint.source.id, target)
    reporter.info(plan.reason)
    if request.dry_run:
        return ExportResult(folder=request.output, plan=plan, manifest=None)
    return _export(request, checkpoint, plan, reporter)


def _export(
    request: ExportRequest, checkpoint: Checkpoint, plan: Plan, reporter: Reporter
) -> ExportResult:
    """Quantize, write, read back, record."""
    file_type = ggml_file_type(plan.chosen.scheme)
    name = gguf_name(checkpoint.source.id.rpartition("/")[2], file_type.label)
    path = request.output / name
    replaced = _check_free(path, overwrite=request.overwrite)
    types = _tensor_types(checkpoint, plan)
    rounds = not all(is_float(kind) for kind in types.values())
    # Read before anything is made, so that a wrong file leaves no folder behind.
    given = _read_calibration(request, checkpoint, reporter) if rounds else None
    request.output.mkdir(parents=True, exist_ok=True)
    reporter.stage("Hashing the checkpoint's files")
    inputs = tuple(hash_file(file) for file in checkpoint.files)
    key = _job_inputs(request, inputs, types, given)
    job = Job(request.output, key, overwrite=request.overwrite)
    calibration: CalibrationSet | None = None
    reports: tuple[LinearReport, ...] = ()
    tensors = float_tensors(checkpoint, types)
    if rounds:
        calibration = given or self_calibration(
            checkpoint, load_tokenizer(checkpoint.path), request.calibration, job.path, reporter
        )
        reports, tensors = _quantize(request, checkpoint, types, calibration, job, reporter)
    metadata = gguf_metadata(checkpoint, file_type, _importance(calibration, reports))
    files = _write(path, metadata, tensors, request.split_max_bytes, reporter)
    for companion in COMPANIONS:
        if (checkpoint.path / companion).is_file():
            shutil.copyfile(checkpoint.path / companion, request.output / companion)
    outcome = Outcome(
        inputs=inputs,
        calibration=calibration,
        files=files,
        tensors=tensors,
        hashes=_check_exact(files[0], tensors, reporter),
        reports=reports,
    )
    manifest = record_export(request, checkpoint, plan, outcome)
    write_manifest(request.output, manifest)
    for old in replaced - set(files):
        old.unlink(missing_ok=True)
    job.discard()
    return ExportResult(folder=request.output, plan=plan, manifest=manifest)


def _plan_known(request: ExportRequest, target: Target) -> Plan | None:
    """The plan of a registered model, so that what does not fit is never downloaded."""
    known = find_model(request.model) if request.model else None
    if known is None or Path(request.model or "").exists():
        return None
    refuse_oversized(known, target)
    return _plan(request, known.dimensions, known.id, target)


def _plan(request: ExportRequest, dimensions: ModelDimensions, model: str, target: Target) -> Plan:
    return make_plan(
        dimensions,
        target,
        model=model,
        scheme=request.scheme,
        context_tokens=request.context_tokens,
    )


def _check_free(path: Path, *, overwrite: bool) -> set[Path]:
    """Refuse to replace a finished artifact, or a file that no job of ours was writing.

    With `overwrite`, returns the files of the artifact that will be replaced.
    """
    folder = path.parent
    taken = [folder / MANIFEST_NAME] if (folder / MANIFEST_NAME).exists() else []
    if folder.is_dir() and not (folder / JOB_FOLDER).exists():
        taken += existing_shards(path)
    if taken and not overwrite:
        raise ArtifactError(
            f"{taken[0]} exists already",
            allowed="a result is never replaced unasked",
            hint="add --overwrite, or choose another folder with -o",
        )
    try:
        return {folder / Path(record.name).name for record in read_manifest(folder).files}
    except ArtifactError:  # none, or a damaged one, which is replaced as well
        return set()


def _tensor_types(checkpoint: Checkpoint, plan: Plan) -> dict[str, Type]:
    """Ggml type of every tensor by GGUF name."""
    architecture, dimensions = checkpoint.architecture, checkpoint.dimensions
    shapes = gguf_shapes(architecture, dimensions)
    return scheme_types(plan.chosen.scheme, shapes, architecture, dimensions)


def _job_inputs(
    request: ExportRequest,
    inputs: Sequence[FileRecord],
    types: Mapping[str, Type],
    given: CalibrationSet | None,
) -> dict[str, Any]:
    """All that decides the bytes of the units."""
    return {
        "checkpoint": [asdict(record) for record in inputs],
        "types": {name: kind.name for name, kind in types.items()},
        "method": asdict(request.method),
        "calibration": asdict(request.calibration),
        "calibration_sha256": given.sha256 if given else None,
        "device": request.device,
        "versions": computing_versions(),
    }


def _quantize(
    request: ExportRequest,
    checkpoint: Checkpoint,
    types: Mapping[str, Type],
    calibration: CalibrationSet,
    job: Job,
    reporter: Reporter,
) -> tuple[tuple[LinearReport, ...], list[ArtifactTensor]]:
    """Run the walk."""
    reporter.stage(
        f"Quantizing with {request.method.algorithm} on {len(calibration.samples)} sequences, "
        f"{calibration.tokens} tokens"
    )
    grids = {
        place.checkpoint_name: get_grid(types[place.gguf_name].name)
        for place in gguf_layout(checkpoint.architecture, checkpoint.dimensions)
        if not is_float(types[place.gguf_name])
    }
    walk = Walk(
        decoder=Decoder(checkpoint.path, checkpoint.architecture, usable_device(request.device)),
        source=checkpoint.load,
        grids=grids,
        method=request.method,
        calibration=calibration,
        job=job,
    )
    walk.run(reporter)
    reports = tuple(report for unit in walk.units for report in job.load(unit).reports)
    for report in reports:
        _warn(report, request, reporter)
    return reports, quantized_tensors(checkpoint, types, job, walk.units)


def _read_calibration(
    request: ExportRequest, checkpoint: Checkpoint, reporter: Reporter
) -> CalibrationSet | None:
    """The sequences of a file or of the embedded set; None for traces, which the job makes."""
    options = request.calibration
    if is_self(options.source):
        return None
    if options.source == "embedded" and checkpoint.source.id != EMBEDDED_NAME:
        reporter.warning(
            "the embedded calibration set is small-number arithmetic, made for tiny-r1: for a "
            "real model use its own reasoning (--calib self:n=64) or a file of yours"
        )
    return load_calibration(load_tokenizer(checkpoint.path), options)


def _warn(report: LinearReport, request: ExportRequest, reporter: Reporter) -> None:
    asked = request.method.gptq.damp_fraction
    if report.damp is not None and report.damp > asked:
        reporter.warning(
            f"{report.name}: its Hessian needed damping {report.damp:g} instead of {asked:g}; "
            "more calibration text would help"
        )
    if report.dead_columns:
        reporter.warning(
            f"{report.name}: input channels that no token made active: {report.dead_columns}"
        )


def _importance(
    calibration: CalibrationSet | None, reports: Sequence[LinearReport]
) -> ImportanceSource | None:
    """The calibration as the GGUF's header names it."""
    if calibration is None:
        return None
    source = Path(calibration.options.source).name
    return ImportanceSource(
        file=source,
        dataset=f"{source}, seed {calibration.options.seed}",
        n_entries=len(reports),
        n_chunks=len(calibration.samples),
    )


def _write(
    path: Path,
    metadata: Sequence[Entry],
    tensors: Sequence[ArtifactTensor],
    split_max_bytes: int | None,
    reporter: Reporter,
) -> tuple[Path, ...]:
    """Write the GGUF with a bar."""
    reporter.stage(f"Writing {path.name}")
    with reporter.progress(len(tensors), "tensors") as progress:
        return write_gguf(
            path,
            metadata=metadata,
            tensors=[tensor.stored for tensor in tensors],
            split_max_bytes=split_max_bytes,
            overwrite=True,
            progress=lambda _name, _done, _total: progress.advance(1),
        )


def _check_exact(
    path: Path, tensors: Sequence[ArtifactTensor], reporter: Reporter
) -> dict[str, str]:
    """Read the file back through the `gguf` package; SHA-256 of every tensor's values."""
    reporter.stage("Reading the file back, bit for bit")
    with reporter.progress(len(tensors), "tensors") as progress:
        return read_back(
            path,
            {tensor.stored.name: tensor.values for tensor in tensors},
            lambda: progress.advance(1),
        )
