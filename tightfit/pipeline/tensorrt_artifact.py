"""Weights to a TensorRT engine: a standard ONNX file, golden logits, and the engine built from it.

All three stay in `tensorrt/`: the ONNX file is what another builder starts from (`tightfit
build-engine`), the golden file is the proof for whoever has the card.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tightfit.calib.checkpoint import Checkpoint
from tightfit.errors import ArtifactError, UsageError
from tightfit.export.manifest import Artifact, EngineRecord, hash_file
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.tensorrt.golden import write_golden
from tightfit.export.tensorrt.names import GOLDEN_NAME, engine_name, log_name
from tightfit.export.tensorrt.structure import check_structure
from tightfit.export.tensorrt.support import check_support, is_experimental
from tightfit.export.weights import unstacked
from tightfit.pipeline.golden import SEQUENCE_TOKENS, golden_of
from tightfit.pipeline.onnx_artifact import write_graph
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.weights import FLOAT_DTYPES
from tightfit.pipeline.work import Work
from tightfit.reporter import Progress as ProgressBar
from tightfit.reporter import Reporter
from tightfit.runtimes.tensorrt.build import build_engine
from tightfit.runtimes.tensorrt.builder import Progress
from tightfit.runtimes.tensorrt.profile import Profile
from tightfit.targets.plan import Plan

FOLDER = "tensorrt"
MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
_OPTIONS = OnnxOptions(dialect=Dialect.STANDARD, precision=Precision.FLOAT16)


def check_tensorrt(request: ExportRequest, plan: Plan, model_type: str) -> None:
    """Raise `UsageError` for what cannot be built, or not be checked on the card."""
    grids = sorted(set(plan.storage.values()) - FLOAT_DTYPES.keys())
    for capability in (plan.target.compute_capability, *request.capabilities):
        check_support(capability, grids, model_type=model_type)
    if plan.context_tokens < SEQUENCE_TOKENS:
        raise UsageError(
            f"an engine for {plan.context_tokens} tokens of context is too short to be checked",
            allowed=f"at least {SEQUENCE_TOKENS}: the golden sequences have so many tokens",
            hint=f"--context {SEQUENCE_TOKENS} or more",
        )


def tensorrt_paths_in_way(
    request: ExportRequest, _checkpoint: Checkpoint, plan: Plan
) -> list[Path]:
    """What already lies where the export will write."""
    folder = request.output / FOLDER
    engine = engine_name(_capabilities(request, plan))
    names = (MODEL_NAME, DATA_NAME, GOLDEN_NAME, engine, log_name(engine))
    return [folder / name for name in names if (folder / name).exists()]


def write_tensorrt_artifact(work: Work) -> Artifact:
    """Write ONNX and golden file, build the engine, check its structure, record all."""
    folder = work.request.output / FOLDER
    artifact = write_graph(work, folder / MODEL_NAME, DATA_NAME, _OPTIONS)
    work.reporter.stage("Computing golden logits")
    golden = folder / GOLDEN_NAME
    write_golden(golden, golden_of(work.checkpoint, unstacked(work.weights), work.request.device))
    engine, record = _build(work, folder)
    more = (golden, engine, folder / log_name(engine.name))
    files = tuple(hash_file(path, work.request.output) for path in more)
    return dataclasses.replace(artifact, files=(*artifact.files, *files), engines=(record,))


def _build(work: Work, folder: Path) -> tuple[Path, EngineRecord]:
    capabilities = _capabilities(work.request, work.plan)
    engine = folder / engine_name(capabilities)
    log = folder / log_name(engine.name)
    work.reporter.stage(f"Building {engine.name}, which needs no GPU")
    for capability in filter(is_experimental, capabilities):
        work.reporter.warning(
            f"an engine for compute capability {capability} is experimental: NVIDIA's support "
            "matrix of TensorRT for RTX does not list it"
        )
    with build_progress(work.reporter) as progress:
        report = build_engine(
            folder / MODEL_NAME,
            engine,
            capabilities=capabilities,
            profile=Profile(context_tokens=work.plan.context_tokens),
            log_file=log,
            progress=progress,
        )
    structure = check_structure(
        engine, folder / MODEL_NAME, capabilities=capabilities, log_file=log
    )
    if not structure.passed:
        engine.unlink()
        raise ArtifactError(
            f"{engine.name} is not what was asked for: {'; '.join(structure.problems)}",
            allowed="every quantized weight must lie in the engine as it is",
            hint=f"{log.name} holds TensorRT's own words; --format onnx makes a file that "
            "onnxruntime runs",
        )
    return engine, EngineRecord(
        file=f"{FOLDER}/{engine.name}",
        compute_capabilities=capabilities,
        experimental=any(map(is_experimental, capabilities)),
        builder=report.builder,
        quantized_tensors=structure.quantized_tensors,
        verbatim_tensors=structure.verbatim_tensors,
        built=True,
        executed=False,
    )


@contextmanager
def build_progress(reporter: Reporter) -> Iterator[Progress]:
    """A bar for the phase of the build that is under way; TensorRT nests them."""
    with ExitStack() as stack:
        bars: dict[str, tuple[ProgressBar, int]] = {}

        def show(phase: str, step: int, steps: int) -> None:
            if phase not in bars:
                stack.close()
                bars.clear()
                bars[phase] = stack.enter_context(reporter.progress(steps, phase)), 0
            bar, done = bars[phase]
            bar.advance(step - done)
            bars[phase] = bar, step

        yield show


def _capabilities(request: ExportRequest, plan: Plan) -> tuple[str, ...]:
    own = plan.target.compute_capability
    assert own is not None, "check_tensorrt refuses a target without a card"
    return tuple(dict.fromkeys((own, *request.capabilities)))
