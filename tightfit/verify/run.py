"""`tightfit verify`: files unchanged, tensors bit-exact, logits as transformers computes them."""

import dataclasses
from pathlib import Path

from tightfit.errors import ArtifactError
from tightfit.export.manifest import Manifest, Verification, read_manifest, write_manifest
from tightfit.reporter import Reporter
from tightfit.verify.integrity import check_files, count_exact
from tightfit.verify.parity import measure_parity


def run_verify(folder: Path, reporter: Reporter) -> Manifest:
    """Verify an artifact's folder and record the outcome in its manifest.

    Raises `ArtifactError` when a file is missing or changed, and `RuntimeFailureError` when
    llama.cpp does not take it.
    """
    manifest = read_manifest(folder)
    reporter.stage("Comparing the files with the manifest")
    check_files(folder, manifest)
    reporter.stage("Reading every tensor back, bit for bit")
    with reporter.progress(len(manifest.tensors), "tensors") as progress:
        n_exact, differing = count_exact(folder, manifest, lambda: progress.advance(1))
    if differing:
        raise ArtifactError(
            f"{len(differing)} of {len(manifest.tensors)} tensors are not the quantizer's numbers: "
            + ", ".join(differing[:3]),
            hint="export again",
        )
    reporter.stage("Comparing llama.cpp with transformers on the dequantized weights")
    parity = measure_parity(folder, folder / manifest.files[0].name)
    verification = Verification(tensors=len(manifest.tensors), exact_tensors=n_exact, parity=parity)
    verified = dataclasses.replace(manifest, verification=verification)
    write_manifest(folder, verified)
    return verified
