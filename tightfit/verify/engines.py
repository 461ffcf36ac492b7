"""TensorRT engines: by their structure anywhere, by their logits on the card that they are for."""

import dataclasses
from pathlib import Path

from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.errors import ArtifactError, RuntimeFailureError
from tightfit.export.manifest import Artifact, EngineRecord
from tightfit.export.tensorrt.golden import read_golden, relative_difference
from tightfit.export.tensorrt.names import GOLDEN_NAME, log_name
from tightfit.export.tensorrt.structure import check_structure
from tightfit.runtimes.tensorrt.engine import Engine, card_capability
from tightfit.runtimes.tensorrt.package import Package, package_of
from tightfit.verify.parity import relative_limit


def check_engines(folder: Path, artifact: Artifact) -> None:
    """Raise `ArtifactError` when an engine is not what its record says.

    Only engines of TensorRT for RTX: what classical TensorRT builds is known by running it.
    """
    onnx_file = folder / artifact.files[0].name
    for record in artifact.engines:
        if package_of(record.builder) is not Package.RTX:
            continue
        engine = folder / record.file
        structure = check_structure(
            engine,
            onnx_file,
            capabilities=record.compute_capabilities,
            log_file=engine.with_name(log_name(engine.name)),
        )
        if not structure.passed:
            raise ArtifactError(
                f"{record.file}: {'; '.join(structure.problems)}",
                allowed="an engine for the recorded cards that holds every quantized weight as "
                "it is",
                hint="export again",
            )


def run_engines(folder: Path, artifact: Artifact) -> Artifact:
    """The artifact with its engines for this machine's GPU run, and what that showed.

    Raises `RuntimeFailureError` where there is no GPU or no engine is for it, and `ArtifactError`
    when the logits are not the golden ones.
    """
    card = card_capability()
    if not any(card in record.compute_capabilities for record in artifact.engines):
        built = [name for record in artifact.engines for name in record.compute_capabilities]
        raise RuntimeFailureError(
            f"no engine here is for this machine's card, of compute capability {card}",
            allowed=f"engines are for: {', '.join(built)}",
            hint="`tightfit build-engine` builds one for this card",
        )
    engines = tuple(
        run_engine(folder, artifact, record) if card in record.compute_capabilities else record
        for record in artifact.engines
    )
    return dataclasses.replace(artifact, engines=engines)


def run_engine(folder: Path, artifact: Artifact, record: EngineRecord) -> EngineRecord:
    """The record of an engine after it ran the golden inputs on this machine's GPU.

    Raises like `run_engines`.
    """
    golden = read_golden((folder / artifact.files[0].name).with_name(GOLDEN_NAME))
    limit = relative_limit(dimensions_of(read_config(folder)).n_layers)
    ran = Engine(folder / record.file, package=package_of(record.builder)).run(golden.batch)
    difference = relative_difference(golden, ran.logits_BTV)
    # Not `difference > limit`, which a NaN would pass.
    if not difference <= limit:
        raise ArtifactError(
            f"{record.file} computes other logits on {ran.device}: they differ by "
            f"{difference:.1%} of the golden ones",
            allowed=f"at most {limit:.1%}, which rounding explains",
            hint="build the engine again; report it if it returns",
        )
    return dataclasses.replace(
        record,
        executed=True,
        device=ran.device,
        relative_difference=difference,
        tokens_per_s=ran.tokens_per_s,
    )
