"""`tightfit verify`: files unchanged, tensors bit-exact, logits as transformers computes them.

A TensorRT engine cannot run without its card: here the ONNX file that it was built from is verified
in onnxruntime, and the engine by its structure. `on_gpu` runs it.
"""

import dataclasses
from pathlib import Path

from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.errors import ArtifactError
from tightfit.export.manifest import (
    Artifact,
    Manifest,
    Parity,
    Verification,
    read_manifest,
    write_manifest,
)
from tightfit.reporter import Reporter
from tightfit.runtimes.opening import unavailable
from tightfit.targets.formats import CHECKPOINT_FORMATS
from tightfit.verify.checkpoint_parity import measure_checkpoint_parity
from tightfit.verify.engines import check_engines, check_runnable, run_engines
from tightfit.verify.integrity import check_files, count_exact
from tightfit.verify.onnx_parity import measure_onnx_parity
from tightfit.verify.parity import measure_parity


def run_verify(folder: Path, reporter: Reporter, *, on_gpu: bool = False) -> Manifest:
    """Verify all artifacts of a folder and record the outcome in the manifest.

    Raises `ArtifactError` when a file is missing or changed, and `RuntimeFailureError` when a
    runtime does not take it. With `on_gpu` the first also when there is no engine, the second when
    there is no card that one is for.
    """
    manifest = read_manifest(folder)
    if on_gpu:
        # Before the minutes that everything else takes.
        check_runnable(folder, [each for made in manifest.artifacts for each in made.engines])
    reporter.stage("Comparing the files with the manifest")
    check_files(folder, manifest.companions)
    for artifact in manifest.artifacts:
        check_files(folder, artifact.files)
    for artifact in manifest.artifacts:
        verified = _verify(folder, artifact, reporter)
        if on_gpu and verified.engines:
            reporter.stage("Running the engine on this machine's GPU")
            verified = run_engines(folder, verified)
        manifest = manifest.with_artifact(verified)
    # What was recorded in these minutes (a drift) is not lost.
    now = read_manifest(folder)
    recorded = {artifact.format: artifact.drift for artifact in now.artifacts}
    for artifact in manifest.artifacts:
        drift = recorded.get(artifact.format)
        manifest = manifest.with_artifact(dataclasses.replace(artifact, drift=drift))
    write_manifest(folder, manifest)
    return manifest


def _verify(folder: Path, artifact: Artifact, reporter: Reporter) -> Artifact:
    file = artifact.files[0].name
    reporter.stage(f"{artifact.format}: reading every tensor back, bit for bit")
    with reporter.progress(len(artifact.tensors), "tensors") as progress:
        n_exact, differing = count_exact(folder, artifact, lambda: progress.advance(1))
    if differing:
        raise ArtifactError(
            f"{len(differing)} of {len(artifact.tensors)} tensors of {file} are not the "
            "quantizer's numbers: " + ", ".join(differing[:3]),
            hint="export again",
        )
    if artifact.engines:
        reporter.stage("Checking the structure of the engine")
        check_engines(folder, artifact)
    parity = _measure_parity(folder, artifact, reporter)
    verification = Verification(tensors=len(artifact.tensors), exact_tensors=n_exact, parity=parity)
    return dataclasses.replace(artifact, verification=verification)


def _not_comparable(folder: Path, format_name: str) -> str | None:
    """Why transformers does not run a checkpoint here."""
    if dimensions_of(read_config(folder)).moe is not None:
        return "transformers merges the experts of a layer, which its quantized layers do not"
    reason = unavailable(format_name)
    return reason.problem if reason else None


def _measure_parity(folder: Path, artifact: Artifact, reporter: Reporter) -> Parity | None:
    path = folder / artifact.files[0].name
    if artifact.format in CHECKPOINT_FORMATS:
        if why := _not_comparable(path.parent, artifact.format):
            reporter.warning(f"{artifact.format}: logits are not compared: {why}")
            return None
        reporter.stage(f"{artifact.format}: comparing transformers with our dequantized weights")
        return measure_checkpoint_parity(path.parent)
    if artifact.format == "gguf":
        reporter.stage("Comparing llama.cpp with transformers on the dequantized weights")
        return measure_parity(folder, path)
    reporter.stage("Comparing onnxruntime with transformers on the dequantized weights")
    return measure_onnx_parity(folder, path)
