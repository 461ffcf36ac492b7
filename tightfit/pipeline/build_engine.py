"""`tightfit build-engine`: an engine for the GPU of this machine, from an exported ONNX file.

Classical TensorRT engines are bound to the GPU that they are built on, so they cannot come with an
export. The new engine is run on the golden inputs at once and joins the manifest.
"""

import dataclasses
from pathlib import Path

from tightfit.errors import ArtifactError
from tightfit.export.manifest import (
    Artifact,
    EngineRecord,
    Manifest,
    hash_file,
    read_manifest,
    write_manifest,
)
from tightfit.export.tensorrt.onnx_weights import read_onnx_weights
from tightfit.pipeline.tensorrt_artifact import build_progress
from tightfit.reporter import Reporter
from tightfit.runtimes.tensorrt.classic import build_engine_here
from tightfit.runtimes.tensorrt.engine import card_capability
from tightfit.runtimes.tensorrt.package import Package, check_package
from tightfit.runtimes.tensorrt.profile import Profile
from tightfit.verify.engines import run_engine
from tightfit.verify.integrity import check_files


def run_build_engine(
    folder: Path,
    reporter: Reporter,
    *,
    package: Package = Package.CLASSIC,
    overwrite: bool = False,
) -> EngineRecord:
    """Build, run and record an engine; returns its record.

    Raises `MissingPackageError`, `RuntimeFailureError` where there is no GPU, and `ArtifactError`
    when the folder holds no TensorRT artifact, an engine is in the way, or the new one computes
    other logits.
    """
    manifest = read_manifest(folder)
    artifact = _tensorrt_artifact(folder, manifest)
    check_package(package)
    capability = card_capability()
    check_files(folder, artifact.files)
    onnx_file = folder / artifact.files[0].name
    reporter.stage(f"Building an engine with {package} for compute capability {capability}")
    with build_progress(reporter) as progress:
        report = build_engine_here(
            onnx_file,
            onnx_file.parent,
            profile=Profile(context_tokens=manifest.context_tokens),
            overwrite=overwrite,
            package=package,
            progress=progress,
        )
    built = EngineRecord(
        file=report.file.relative_to(folder).as_posix(),
        compute_capabilities=(capability,),
        experimental=False,
        builder=report.builder,
        quantized_tensors=len(read_onnx_weights(onnx_file).quantized),
        verbatim_tensors=0,
        built=True,
        executed=False,
    )
    reporter.stage("Running it on the golden inputs")
    record = run_engine(folder, artifact, built)
    new_files = (report.file, report.log_file)
    write_manifest(
        folder, manifest.with_artifact(_with_engine(artifact, record, folder, new_files))
    )
    return record


def _tensorrt_artifact(folder: Path, manifest: Manifest) -> Artifact:
    for artifact in manifest.artifacts:
        if artifact.format == "tensorrt":
            return artifact
    raise ArtifactError(
        f"{folder} holds no TensorRT artifact",
        allowed="a folder made with --format tensorrt, whose ONNX file engines are built from",
        hint="export the model with --format tensorrt (or gguf,onnx,tensorrt)",
    )


def _with_engine(
    artifact: Artifact, record: EngineRecord, folder: Path, new_files: tuple[Path, ...]
) -> Artifact:
    """The artifact with the engine, in place of an older one of that name."""
    added = tuple(hash_file(path, folder) for path in new_files)
    names = {file.name for file in added}
    return dataclasses.replace(
        artifact,
        files=(*(file for file in artifact.files if file.name not in names), *added),
        engines=(*(old for old in artifact.engines if old.file != record.file), record),
    )
