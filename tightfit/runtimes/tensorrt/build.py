"""Building an engine ahead of time: the parent's side.

A build takes gigabytes and minutes, and a crash in it must not take us along: it runs in a child.
Engine and log appear under their names when both are whole, or not at all.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tightfit.errors import ArtifactError, RuntimeFailureError
from tightfit.export.tensorrt.onnx_weights import read_onnx_weights
from tightfit.files import whole_file
from tightfit.runtimes.child import ChildProcess
from tightfit.runtimes.framing import Message
from tightfit.runtimes.tensorrt.builder import Progress
from tightfit.runtimes.tensorrt.memory import check_build_memory
from tightfit.runtimes.tensorrt.package import Package, check_package
from tightfit.runtimes.tensorrt.profile import Profile

SILENCE_S = 3600.0
"""Longest time between two messages: one step compiles a whole graph."""
LOG_LINES = 6
"""Lines of the child's output in an error message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """A built engine; it has not run anywhere yet."""

    file: Path
    log_file: Path
    """TensorRT's verbose log, which `check_structure` reads."""
    size_bytes: int
    capabilities: tuple[str, ...]
    """As they were asked for."""
    builder: str
    """Package and version, e.g. `tensorrt_rtx 1.7.1.116`."""
    layers: int
    """Of the network, before TensorRT fuses them."""
    seconds: float
    peak_bytes: int | None
    """Peak resident memory of the child; None where the system does not tell."""


def build_engine(
    onnx_file: Path,
    out_file: Path,
    *,
    capabilities: Sequence[str],
    profile: Profile,
    log_file: Path,
    package: Package = Package.RTX,
    progress: Progress = lambda _phase, _step, _steps: None,
) -> EngineReport:
    """Build an engine from an ONNX file in the standard dialect; replaces `out_file`.

    `capabilities` are compute capabilities such as `8.6`; several make one plan that serves all;
    none leaves it to the package: TensorRT for RTX builds for all from 8.0 up, the classical one
    for the GPU of this machine.
    Ask `check_support` first. Raises `MissingPackageError`; `ArtifactError` when the ONNX file is
    incomplete or the disk is full; `DoesNotFitError` when memory is short; `RuntimeFailureError`
    with TensorRT's words when it refuses. Then nothing is left behind.
    """
    check_package(package)
    weights = read_onnx_weights(onnx_file)
    check_build_memory(weights.data_bytes)
    start_s = time.monotonic()
    with whole_file(out_file) as engine_part, whole_file(log_file) as log_part:
        request: Message = {
            "package": package,
            "onnx_file": str(onnx_file),
            "engine_file": str(engine_part),
            "log_file": str(log_part),
            "capabilities": list(capabilities),
            "profile": dataclasses.asdict(profile),
        }
        child = ChildProcess("tightfit.runtimes.tensorrt.worker", {})
        try:
            child.send(request)
            done = _await(child, onnx_file, out_file, progress)
        finally:
            child.stop()
    return EngineReport(
        file=out_file,
        log_file=log_file,
        size_bytes=out_file.stat().st_size,
        capabilities=tuple(capabilities),
        builder=f"{package} {done['version']}",
        layers=done["layers"],
        seconds=time.monotonic() - start_s,
        peak_bytes=done["peak_bytes"],
    )


def _await(child: ChildProcess, onnx_file: Path, out_file: Path, progress: Progress) -> Message:
    """Forward progress until the child is done."""
    while True:
        try:
            reply = child.receive(SILENCE_S)
        except TimeoutError:
            raise _failure(child, f"TensorRT was silent for {SILENCE_S:g} s") from None
        if reply is None:
            how = child.exit_description()
            raise _failure(child, f"TensorRT ended with {how} while it built from {onnx_file}")
        message = reply[0]
        if "done" in message:
            done: Message = message["done"]
            return done
        if "errno" in message:
            raise ArtifactError(
                f"cannot write {out_file} and its log: {message['text']}",
                hint="free some space or choose another folder with -o; finished work is kept, "
                "and the same command continues from it",
            )
        if "error" in message:
            parts = message["error"]
            raise RuntimeFailureError(
                parts["problem"], allowed=parts["allowed"], hint=parts["hint"]
            )
        progress(message["phase"], message["step"], message["steps"])


def _failure(child: ChildProcess, problem: str) -> RuntimeFailureError:
    lines = child.log_text().splitlines()[-LOG_LINES:]
    hint = "signal 9 means that memory ran out: end other programs, or build on a larger machine"
    if lines:
        hint = "\n".join([hint, "its last words:", *(f"  {line}" for line in lines)])
    return RuntimeFailureError(problem, hint=hint)
