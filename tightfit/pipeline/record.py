"""The manifest of an export, from what the export did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.manifest import (
    SCHEMA_VERSION,
    CalibrationRecord,
    FileRecord,
    InputRecord,
    Manifest,
    SchemeRecord,
    TensorRecord,
    hash_file,
)
from tightfit.pipeline.gguf_artifact import ArtifactTensor
from tightfit.pipeline.job import LinearReport
from tightfit.pipeline.requests import ExportRequest
from tightfit.targets.plan import Plan
from tightfit.targets.schemes.ggml_types import tensor_bytes

PACKAGES = ("tightfit", "gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers")
"""Packages whose version can change the bytes of an artifact."""
_BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an export read and made."""

    inputs: tuple[FileRecord, ...]
    calibration: CalibrationSet | None
    files: tuple[Path, ...]
    tensors: Sequence[ArtifactTensor]
    hashes: Mapping[str, str]
    """SHA-256 of every tensor's values by its name in the file."""
    reports: tuple[LinearReport, ...]


def computing_versions() -> dict[str, str]:
    """What may change the last bits of a sum, and with them the bytes: packages and threads."""
    versions = {package: version(package) for package in PACKAGES}
    return versions | {"torch threads": str(torch.get_num_threads())}


def record_export(
    request: ExportRequest, checkpoint: Checkpoint, plan: Plan, outcome: Outcome
) -> Manifest:
    """The manifest of a finished export, before verification and drift."""
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    n_parameters = count_parameters(shapes)
    stored = [tensor.stored for tensor in outcome.tensors]
    stored_bytes = sum(tensor_bytes(tensor.ggml_type, tensor.shape) for tensor in stored)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        format="gguf",
        input=InputRecord(
            id=checkpoint.source.id,
            revision=checkpoint.source.revision,
            model_type=checkpoint.dimensions.model_type,
            parameters=n_parameters,
            files=outcome.inputs,
        ),
        scheme=SchemeRecord(
            name=plan.chosen.scheme,
            method=request.method.algorithm.value,
            order=request.method.gptq.order.value,
            target=plan.target.name,
            context_tokens=plan.context_tokens,
            reason=plan.reason,
        ),
        calibration=_record_calibration(outcome.calibration),
        files=tuple(hash_file(path) for path in outcome.files),
        bits_per_weight=stored_bytes * _BITS_PER_BYTE / n_parameters,
        tensors=_record_tensors(outcome),
        versions=computing_versions(),
    )


def _record_calibration(calibration: CalibrationSet | None) -> CalibrationRecord | None:
    if calibration is None:
        return None
    options = calibration.options
    return CalibrationRecord(
        # A path would name a machine; the hash says which tokens they were.
        source=Path(options.source).name,
        samples=len(calibration.samples),
        tokens=calibration.tokens,
        max_tokens=options.max_tokens,
        seed=options.seed,
        sha256=calibration.sha256,
    )


def _record_tensors(outcome: Outcome) -> tuple[TensorRecord, ...]:
    errors = {report.name: report.relative_error for report in outcome.reports}
    return tuple(
        TensorRecord(
            name=tensor.stored.name,
            grid=tensor.stored.ggml_type.name,
            shape=tuple(tensor.stored.shape),
            sha256=outcome.hashes[tensor.stored.name],
            relative_error=errors.get(tensor.checkpoint_name),
        )
        for tensor in outcome.tensors
    )
