"""Classical TensorRT: an engine built on the machine that has the GPU, for that GPU only.

The ONNX file, the profiles, the child and the golden check are those of TensorRT for RTX; what
differs is the package and that no compute capability can be named. Never executed by its authors:
the package cannot be installed without a GPU's driver stack.
"""

from collections.abc import Sequence
from pathlib import Path

from tightfit.export.tensorrt.names import ENGINE_SUFFIX, log_name
from tightfit.files import refuse_existing
from tightfit.runtimes.tensorrt.build import EngineReport, build_engine
from tightfit.runtimes.tensorrt.builder import Progress
from tightfit.runtimes.tensorrt.package import Package
from tightfit.runtimes.tensorrt.profile import Profile

ENGINE_NAME = f"model.this-gpu{ENGINE_SUFFIX}"


def build_engine_here(
    onnx_file: Path,
    folder: Path,
    *,
    profile: Profile,
    capabilities: Sequence[str] = (),
    overwrite: bool = False,
    package: Package = Package.CLASSIC,
    progress: Progress = lambda _phase, _step, _steps: None,
) -> EngineReport:
    """Build `model.this-gpu.engine` in `folder` for the GPU of this machine.

    `capabilities` are for TensorRT for RTX, which without them builds for all its cards.
    Raises what `build_engine` raises, and `ArtifactError` when the engine exists and `overwrite`
    is false.
    """
    engine_file = folder / ENGINE_NAME
    refuse_existing([engine_file] if engine_file.exists() else [], overwrite=overwrite)
    return build_engine(
        onnx_file,
        engine_file,
        capabilities=capabilities,
        profile=profile,
        log_file=folder / log_name(ENGINE_NAME),
        package=package,
        progress=progress,
    )
