"""The manifest of an export, from what the export did."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import count_parameters, tensor_shapes
from tightfit.export.manifest import (
    SCHEMA_VERSION,
    Artifact,
    CalibrationRecord,
    FileRecord,
    ImatrixRecord,
    InputRecord,
    Manifest,
    hash_file,
)
from tightfit.pipeline.command import export_command
from tightfit.pipeline.requests import ExportRequest
from tightfit.targets.plan import Plan

PACKAGES = (
    "tightfit",
    "gguf",
    "numba",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""Packages whose version can change the bytes of the quantized tensors."""


def computing_versions() -> dict[str, str]:
    """What may change the last bits of a sum, and with them the bytes: packages and threads."""
    versions = {package: version(package) for package in PACKAGES}
    return versions | {"torch threads": str(torch.get_num_threads())}


def record_export(
    request: ExportRequest,
    checkpoint: Checkpoint,
    plan: Plan,
    inputs: Sequence[FileRecord],
    calibration: CalibrationSet | None,
    imatrix: ImatrixRecord | None,
    artifacts: Sequence[Artifact],
    companions: Sequence[Path],
) -> Manifest:
    """The manifest of a finished export, before verification and drift."""
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        input=InputRecord(
            id=checkpoint.source.id,
            revision=checkpoint.source.revision,
            model_type=checkpoint.dimensions.model_type,
            parameters=count_parameters(shapes),
            files=tuple(inputs),
        ),
        target=plan.target.name,
        context_tokens=plan.context_tokens,
        command=export_command(request, checkpoint.source),
        calibration=_record_calibration(calibration),
        imatrix=imatrix,
        artifacts=tuple(artifacts),
        companions=tuple(map(hash_file, companions)),
        versions=computing_versions() | _writing_versions(),
    )


def _writing_versions() -> dict[str, str]:
    """Packages that only decide how an ONNX file is written, where they are installed."""
    versions = {}
    for package in ("onnx", "onnx-ir", "onnxruntime"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


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
