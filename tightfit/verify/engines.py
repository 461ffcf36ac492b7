"""TensorRT engines: by their structure anywhere, by their logits on the card that they are for."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.errors import ArtifactError, RuntimeFailureError
from tightfit.export.manifest import Artifact, EngineRecord
from tightfit.export.onnx.readback import read_input_scales
from tightfit.export.tensorrt.golden import Batch, read_golden, relative_difference
from tightfit.export.tensorrt.names import GOLDEN_NAME, log_name
from tightfit.export.tensorrt.structure import check_structure
from tightfit.runtimes.tensorrt.engine import BatchRun, Engine, card_capability
from tightfit.runtimes.tensorrt.package import Package, package_of
from tightfit.verify.onnx_parity import STATIC_FLOAT8_PER_BLOCK
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


def check_runnable(folder: Path, engines: Sequence[EngineRecord]) -> None:
    """Raise `ArtifactError` when there is no engine, `RuntimeFailureError` when none can run here.

    That is where the machine has no GPU, or one that no engine is for.
    """
    if not engines:
        raise ArtifactError(
            f"{folder} holds no TensorRT engine that a GPU could run",
            allowed="a folder made with --format tensorrt",
            hint="leave --on-gpu out: `tightfit verify` runs every other format on the CPU",
        )
    card = card_capability()
    built = [name for record in engines for name in record.compute_capabilities]
    if card not in built:
        raise RuntimeFailureError(
            f"no engine here is for this machine's card, of compute capability {card}",
            allowed=f"engines are for: {', '.join(built)}",
            hint="`tightfit build-engine` builds one for this card",
        )


def run_engines(folder: Path, artifact: Artifact) -> Artifact:
    """The artifact with its engines for this machine's GPU run, and what that showed.

    Raises `RuntimeFailureError` where there is no GPU, and `ArtifactError` when the logits are not
    the golden ones.
    """
    card = card_capability()
    engines = tuple(
        run_engine(folder, artifact, record) if card in record.compute_capabilities else record
        for record in artifact.engines
    )
    return dataclasses.replace(artifact, engines=engines)


def run_engine(
    folder: Path, artifact: Artifact, record: EngineRecord, *, at: Path | None = None
) -> EngineRecord:
    """The record of an engine after it ran the golden inputs on this machine's GPU.

    `at` is where its file lies, when not in its place yet. Raises like `run_engines`.
    """
    onnx_file = folder / artifact.files[0].name
    golden = read_golden(onnx_file.with_name(GOLDEN_NAME))
    limit = _limit(folder, onnx_file)
    engine = Engine(at or folder / record.file, package=package_of(record.builder))
    ran = _run_batch(engine, golden.batch)
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


def _limit(folder: Path, onnx_file: Path) -> float:
    """Largest relative difference that rounding explains."""
    n_blocks = dimensions_of(read_config(folder)).n_layers
    if read_input_scales(onnx_file):
        return STATIC_FLOAT8_PER_BLOCK * math.sqrt(n_blocks)
    return relative_limit(n_blocks)


def _run_batch(engine: Engine, batch: Batch) -> BatchRun:
    """All sequences, as many at a time as the engine was built for, each with its padding."""
    n_rows = len(batch.input_ids_BT)
    runs = []
    for start in range(0, n_rows, engine.max_batch):
        rows = slice(start, start + engine.max_batch)
        part = dataclasses.replace(
            batch,
            input_ids_BT=batch.input_ids_BT[rows],
            attention_mask_BT=batch.attention_mask_BT[rows],
            position_ids_BT=batch.position_ids_BT[rows],
        )
        runs.append(engine.run(part))
    seconds_per_column = sum(len(run.logits_BTV) / run.tokens_per_s for run in runs)
    return BatchRun(
        logits_BTV=np.concatenate([run.logits_BTV for run in runs]),
        tokens_per_s=n_rows / seconds_per_column,
        device=runs[0].device,
    )
