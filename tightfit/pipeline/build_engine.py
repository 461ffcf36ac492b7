"""`tightfit build-engine`: an engine for the GPU of this machine, from an exported ONNX file.

Classical TensorRT engines are bound to the GPU that they are built on, so they cannot come with an
export. The new engine is built beside its place and run on the golden inputs; what computes the
right logits takes its place and joins the manifest, anything else leaves nothing.
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
from tightfit.export.tensorrt.names import log_name
from tightfit.export.tensorrt.onnx_weights import read_onnx_weights
from tightfit.export.tensorrt.support import check_support, is_experimental
from tightfit.export.tensorrt.verbatim import find_verbatim
from tightfit.files import move_into_place, partial_folder, refuse_existing
from tightfit.pipeline.tensorrt_artifact import build_progress
from tightfit.reporter import Reporter
from tightfit.runtimes.tensorrt.classic import ENGINE_NAME, build_engine_here
from tightfit.runtimes.tensorrt.engine import card_capability
from tightfit.runtimes.tensorrt.package import Package, check_package
from tightfit.runtimes.tensorrt.profile import Profile
from tightfit.verify.engines import run_engine
from tightfit.verify.integrity import check_files

_FLOAT_TYPES = {"float16", "bfloat16", "float32"}
"""Of a tensor's record, where it is on no grid."""


def run_build_engine(
    folder: Path,
    reporter: Reporter,
    *,
    package: Package = Package.CLASSIC,
    overwrite: bool = False,
) -> EngineRecord:
    """Build, run and record an engine; returns its record.

    Raises `MissingPackageError`, `RuntimeFailureError` where there is no GPU, `UsageError` for a
    card that TensorRT for RTX does not serve, and `ArtifactError` when the folder holds no TensorRT
    artifact, an engine is in the way, or the new one computes other logits.
    """
    manifest = read_manifest(folder)
    artifact = _tensorrt_artifact(folder, manifest)
    check_package(package)
    card = card_capability()
    if package is Package.RTX:
        check_support(card, sorted({tensor.grid for tensor in artifact.tensors} - _FLOAT_TYPES))
    check_files(folder, artifact.files)
    onnx_file = folder / artifact.files[0].name
    engine = onnx_file.with_name(ENGINE_NAME)
    names = (engine.name, log_name(engine.name))
    old = [path for path in map(engine.with_name, names) if path.exists()]
    refuse_existing(old, overwrite=overwrite)
    weights = read_onnx_weights(onnx_file)
    reporter.stage(f"Building an engine with {package} for compute capability {card}")
    with partial_folder(engine, needed_bytes=weights.data_bytes) as beside:
        with build_progress(reporter) as progress:
            report = build_engine_here(
                onnx_file,
                beside,
                # The classical package builds for the machine's card, and takes no names.
                capabilities=(card,) if package is Package.RTX else (),
                profile=Profile(context_tokens=manifest.context_tokens),
                package=package,
                progress=progress,
            )
        matrices = {name: item.matrix for name, item in weights.quantized.items()}
        built = EngineRecord(
            file=engine.relative_to(folder).as_posix(),
            compute_capabilities=(card,),
            experimental=package is Package.RTX and is_experimental(card),
            builder=report.builder,
            quantized_tensors=len(matrices),
            verbatim_tensors=len(find_verbatim(report.file, matrices)),
            built=True,
            executed=False,
        )
        reporter.stage("Running it on the golden inputs")
        record = run_engine(folder, artifact, built, at=report.file)
        new_files = move_into_place(names, beside, engine.parent, old)
    made = _with_engine(artifact, record, folder, new_files)
    write_manifest(folder, manifest.with_artifact(made))
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
