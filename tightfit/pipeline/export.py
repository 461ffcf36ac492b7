"""`tightfit export`: checkpoint -> plans -> one walk per distinct quantization -> artifacts.

Every artifact is read back before it is recorded; the manifest comes last, so a folder with a
manifest is whole.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tightfit.calib.checkpoint import COMPANIONS, Checkpoint, open_checkpoint
from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.locate import locate_model
from tightfit.calib.models import find_model
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.calib.validate import validate
from tightfit.errors import ArtifactError, UsageError
from tightfit.export.manifest import (
    MANIFEST_NAME,
    Artifact,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
    write_manifest,
)
from tightfit.pipeline.checkpoint_artifact import (
    checkpoint_folder,
    checkpoint_paths_in_way,
    write_checkpoint_artifact,
)
from tightfit.pipeline.checks import check_options, check_packages, check_plan
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.gguf_artifact import gguf_paths_in_way, write_gguf_artifact
from tightfit.pipeline.guidance import Guidance, is_calibrated, read_guidance
from tightfit.pipeline.job import FOLDER as JOB_FOLDER
from tightfit.pipeline.job import UNFINISHED, Job
from tightfit.pipeline.kept import STORED, check_kept, kept_plan
from tightfit.pipeline.needs import check_disk, job_size, predict_needs
from tightfit.pipeline.onnx_artifact import onnx_paths_in_way, write_onnx_artifact
from tightfit.pipeline.quantizations import (
    Quantization,
    distinct_quantizations,
    run_quantization,
)
from tightfit.pipeline.record import computing_versions, record_export
from tightfit.pipeline.refine import judged_grids, refine_plans
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.self_traces import self_calibration
from tightfit.pipeline.tensorrt_artifact import (
    tensorrt_paths_in_way,
    write_tensorrt_artifact,
)
from tightfit.pipeline.work import Work
from tightfit.pipeline.workers import choose_workers
from tightfit.reporter import Reporter
from tightfit.targets.formats import CHECKPOINT_FORMATS
from tightfit.targets.job_needs import JobNeeds, needs_text
from tightfit.targets.plan import Plan, make_plan
from tightfit.targets.profile import Target, choose_target

Writer = Callable[[Work], Artifact]
PathsInWay = Callable[[ExportRequest, Checkpoint, Plan], list[Path]]
WRITERS: Mapping[str, tuple[Writer, PathsInWay]] = {
    "gguf": (write_gguf_artifact, gguf_paths_in_way),
    "onnx": (write_onnx_artifact, onnx_paths_in_way),
    "tensorrt": (write_tensorrt_artifact, tensorrt_paths_in_way),
    **dict.fromkeys(CHECKPOINT_FORMATS, (write_checkpoint_artifact, checkpoint_paths_in_way)),
}
"""By format: what writes it, and what finds files in its way."""
_MTP_LEFT_OUT = (
    "the multi-token-prediction layer is left out: it drafts tokens and does not change them "
    "(--mtp keep puts it into the artifact)"
)
_MTP_KEPT = "the multi-token-prediction layer is kept, its FP8 matrices as BF16"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export made."""

    folder: Path
    plans: tuple[Plan, ...]
    """One a format."""
    manifest: Manifest | None
    """None after a dry run."""
    needs: JobNeeds
    """As predicted."""


def run_export(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Export a checkpoint for a target.

    An interrupted export continues from its finished units when it is asked for again.
    Raises `CheckpointError`, `DoesNotFitError`, `CalibrationError`, `QuantizationError`,
    `ArtifactError`, `MissingPackageError` and `UsageError`.
    """
    usable_device(request.device)
    check_options(request)
    target = choose_target(request.target, request.target_file)
    known = _plans_known(request, target)
    if known is not None and request.dry_run:
        _tell(known, request, reporter)
        return _dry(request, known)
    if not request.dry_run:
        check_packages(request.formats)
    reporter.stage("Reading the checkpoint")
    checkpoint = open_checkpoint(locate_model(request.model, revision=request.revision))
    validate(checkpoint, checkpoint.architecture)
    if checkpoint.mtp_names():
        reporter.info(_MTP_KEPT if request.keep_mtp else _MTP_LEFT_OUT)
    elif request.keep_mtp:
        raise UsageError(
            f"--mtp keep, and {checkpoint.source.id} holds no multi-token-prediction layer",
            allowed="--mtp keep for checkpoints that store one, such as R1",
            hint="leave --mtp out",
        )
    plans = _checkpoint_plans(request, checkpoint, target)
    _tell(plans, request, reporter)
    if request.dry_run:
        return _dry(request, plans)
    return _export(request, checkpoint, plans, reporter)


def _dry(request: ExportRequest, plans: tuple[Plan, ...]) -> ExportResult:
    needs = predict_needs(plans, distinct_quantizations(plans, request.method), request)
    return ExportResult(folder=request.output, plans=plans, manifest=None, needs=needs)


def _export(
    request: ExportRequest, checkpoint: Checkpoint, plans: tuple[Plan, ...], reporter: Reporter
) -> ExportResult:
    """Quantize, write, read back, record."""
    replaced = _check_free(request, checkpoint, plans)
    is_kept = checkpoint.packed is not None
    quantizations = distinct_quantizations(plans, request.method, is_kept=is_kept)
    rounds = any(quantization.rounds for quantization in quantizations)
    # Read before anything is made, so that a wrong file leaves no folder behind.
    given = read_guidance(request, checkpoint, reporter) if rounds else Guidance()
    needs = predict_needs(plans, quantizations, request, given.calibration)
    reporter.info(needs_text(needs))
    check_disk(needs, request.output)
    request.output.mkdir(parents=True, exist_ok=True)
    reporter.stage("Hashing the checkpoint's files")
    inputs = tuple(hash_file(file) for file in checkpoint.files)
    job = Job(
        request.output,
        _job_inputs(request, inputs, plans, quantizations, given),
        overwrite=request.overwrite,
    )
    calibration = given.calibration
    if rounds and is_calibrated(request.calibration.source):
        calibration = calibration or self_calibration(
            checkpoint, load_tokenizer(checkpoint.path), request.calibration, job.path, reporter
        )
        refined = refine_plans(plans, request, checkpoint, calibration, job, reporter)
        if refined != plans:
            plans = refined
            _tell(plans, request, reporter)
            quantizations = distinct_quantizations(plans, request.method)
    made: dict[str, Artifact] = {}
    companions: list[Path] = []
    for quantization in quantizations:
        size = job_size(quantization, checkpoint.dimensions, request, calibration)
        workers = choose_workers(request, size)
        quantized = run_quantization(
            quantization,
            checkpoint,
            calibration,
            given.imatrix,
            job,
            workers,
            reporter,
            streamed=size.streamed,
        )
        # Now that writing begins: writers change some of them.
        companions = companions or _copy_companions(checkpoint, request)
        for plan in plans:
            if plan.format not in quantization.formats:
                continue
            write, _ = WRITERS[plan.format]
            made[plan.format] = write(
                Work(
                    request=request,
                    checkpoint=checkpoint,
                    plan=plan,
                    method=quantization.method,
                    weights=quantized.weights,
                    reports=quantized.reports,
                    is_kept=quantization.is_kept,
                    kv_scales=quantized.kv_scales,
                    calibration=calibration,
                    imatrix=given.imatrix_record,
                    threads=workers.count if size.streamed else 1,
                    unfinished=job.path / UNFINISHED if size.streamed else None,
                    reporter=reporter,
                )
            )
    artifacts = [made[plan.format] for plan in plans]
    manifest = record_export(
        request,
        checkpoint,
        plans[0],
        inputs,
        calibration,
        given.imatrix_record,
        artifacts,
        companions,
    )
    write_manifest(request.output, manifest)
    _remove(replaced, manifest, request.output)
    job.discard()
    return ExportResult(folder=request.output, plans=plans, manifest=manifest, needs=needs)


def _plans_known(request: ExportRequest, target: Target) -> tuple[Plan, ...] | None:
    """The plans of a registered model, so that what does not fit is never downloaded."""
    known = find_model(request.model) if request.model else None
    if known is None or Path(request.model or "").exists():
        return None
    return _plans(request, known.dimensions, known.id, target)


def _checkpoint_plans(
    request: ExportRequest, checkpoint: Checkpoint, target: Target
) -> tuple[Plan, ...]:
    """The plans of a model whose folder is there; of a quantized one those that keep it so."""
    if checkpoint.packed is None:
        if request.scheme == STORED:
            raise UsageError(
                f"--scheme {STORED}, and {checkpoint.source.id} is not quantized",
                allowed=f"--scheme {STORED} keeps the numbers of a GPTQ, AWQ or compressed-tensors "
                "checkpoint",
                hint="leave --scheme out",
            )
        return _plans(request, checkpoint.dimensions, checkpoint.source.id, target)
    check_kept(request, checkpoint)
    return tuple(kept_plan(request, checkpoint, target, name) for name in request.formats)


def _plans(
    request: ExportRequest, dimensions: ModelDimensions, model: str, target: Target
) -> tuple[Plan, ...]:
    plans = tuple(
        make_plan(
            dimensions,
            target,
            model=model,
            scheme=request.scheme,
            context_tokens=request.context_tokens,
            n_sequences=request.n_sequences,
            cache_type=request.cache_type,
            split=request.split,
            budget=request.budget,
            format=format_,
            head=request.head,
            embedding=request.embedding,
            precision=request.onnx_precision if format_ == "onnx" else None,
        )
        for format_ in request.formats
    )
    for plan in plans:
        check_plan(request, plan, dimensions)
    return plans


def _tell(plans: Sequence[Plan], request: ExportRequest, reporter: Reporter) -> None:
    """Say what each format gets, and which share their numbers."""
    for plan in plans:
        reporter.info(f"{plan.format}: {plan.reason}" if len(plans) > 1 else plan.reason)
    for quantization in distinct_quantizations(plans, request.method):
        if len(quantization.formats) > 1:
            formats = ", ".join(quantization.formats)
            reporter.info(f"{formats} share one quantization, {quantization.scheme}")


def _check_free(request: ExportRequest, checkpoint: Checkpoint, plans: Sequence[Plan]) -> set[Path]:
    """Refuse to replace a finished artifact, or a file that no job of ours was writing.

    With `overwrite`, returns the files of the artifacts that will be replaced.
    """
    folder = request.output
    taken = [folder / MANIFEST_NAME] if (folder / MANIFEST_NAME).exists() else []
    if folder.is_dir() and not (folder / JOB_FOLDER).exists():
        for plan in plans:
            _, paths_in_way = WRITERS[plan.format]
            taken += paths_in_way(request, checkpoint, plan)
    if taken and not request.overwrite:
        raise ArtifactError(
            f"{taken[0]} exists already",
            allowed="a result is never replaced unasked",
            hint="add --overwrite, or choose another folder with -o",
        )
    try:
        old = read_manifest(folder)
    except ArtifactError:  # none, or a damaged one, which is replaced as well
        return set()
    return _listed(old, folder)


def _listed(manifest: Manifest, folder: Path) -> set[Path]:
    """Files that the manifest lists, in the folder; a path that leads out of it is not ours."""
    inside = folder.resolve()
    paths = {folder / record.name for artifact in manifest.artifacts for record in artifact.files}
    return {path for path in paths if path.resolve().is_relative_to(inside)}


def _remove(replaced: set[Path], manifest: Manifest, folder: Path) -> None:
    """Delete what the new artifacts did not replace by name, and folders that this leaves empty."""
    gone = replaced - _listed(manifest, folder)
    for old in gone:
        old.unlink(missing_ok=True)
    for emptied in {old.parent for old in gone} - {folder}:
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def _copy_companions(checkpoint: Checkpoint, request: ExportRequest) -> list[Path]:
    """The small files beside the artifacts; a checkpoint at the root has its own config.json."""
    present = [name for name in COMPANIONS if (checkpoint.path / name).is_file()]
    roots = (checkpoint_folder(request, name) for name in request.formats)
    own_config = request.output in roots
    for name in present:
        if name != CONFIG_NAME or not own_config:
            shutil.copyfile(checkpoint.path / name, request.output / name)
    return [request.output / name for name in present]


def _job_inputs(
    request: ExportRequest,
    inputs: Sequence[FileRecord],
    plans: Sequence[Plan],
    quantizations: Sequence[Quantization],
    given: Guidance,
) -> dict[str, Any]:
    """All that decides the bytes of the units."""
    return {
        "checkpoint": [asdict(record) for record in inputs],
        "quantizations": [quantization.key for quantization in quantizations],
        "grids": judged_grids(plans),
        "calibration": asdict(request.calibration),
        "calibration_sha256": given.calibration.sha256 if given.calibration else None,
        "imatrix_sha256": given.imatrix_record.sha256 if given.imatrix_record else None,
        "device": request.device,
        "versions": computing_versions(),
    }
