"""Building an engine, inside the child: parser, profiles, streaming, log.

The network is strongly typed: every type is the ONNX file's, and TensorRT chooses none. What it
reports through callbacks is collected here, because it ignores their exceptions and a short write:
`build_serialized_network_to_stream` then returns True all the same (tried, 1.7.1).
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tightfit.errors import RuntimeFailureError
from tightfit.export.tensorrt.names import sm_name
from tightfit.runtimes.tensorrt.package import Package, implement, import_package
from tightfit.runtimes.tensorrt.profile import Profile, input_shapes, phases

REPORT_INTERVAL_S = 0.1
"""Shortest time between two progress messages: TensorRT completes thousands of steps."""
_SHOWN_ERRORS = 4
_NO_DRIVER = "catchCudaError"
"""Where TensorRT complains of the missing driver after any other failure."""

Progress = Callable[[str, int, int], None]
"""Called with the phase, its completed steps, and its steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """Everything that the child is told."""

    package: Package
    onnx_file: Path
    engine_file: Path
    log_file: Path
    capabilities: tuple[str, ...]
    """Empty: the GPU of this machine."""
    profile: Profile


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """What only the child knows."""

    version: str
    """Of the package."""
    layers: int
    """Of the parsed network."""


def build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Build the engine file and its log.

    Raises `OSError` when the disk is full, and `RuntimeFailureError` with TensorRT's words when
    it does not parse the file or refuses to build it.
    """
    trt = import_package(request.package)
    with request.log_file.open("w", encoding="utf-8") as log_stream:
        # The log is shipped: it names files, never this machine's folders.
        log = _Log(log_stream, hidden=f"{request.onnx_file.parent}{os.sep}")
        logger = implement(
            trt.ILogger, log=lambda _self, severity, text: log.add(severity.name, text)
        )
        builder = trt.Builder(logger)
        if not builder:
            raise log.failure("TensorRT did not start")
        builder.max_threads = len(os.sched_getaffinity(0))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(request.onnx_file)):
            errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
            raise log.failure(f"TensorRT does not accept {request.onnx_file}", errors)
        with request.engine_file.open("wb") as engine_stream:
            plan = _PlanStream(engine_stream)
            config = _config(trt, builder, network, request)
            monitor = _monitor(trt, progress, lambda: plan.error is None and log.error is None)
            config.progress_monitor = monitor
            writer = implement(trt.IStreamWriter, write=lambda _self, data: plan.write(data))
            done = builder.build_serialized_network_to_stream(network, config, writer)
        if error := plan.error or log.error:
            raise error
        if not done or not plan.n_bytes:
            raise log.failure(f"TensorRT refused to build an engine from {request.onnx_file}")
        return BuildResult(version=trt.__version__, layers=network.num_layers)


def _config(trt: Any, builder: Any, network: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    # Layer by layer what the engine computes, with the types of its constants: into the log.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.capabilities:
        config.num_compute_capabilities = len(request.capabilities)
    for index, capability in enumerate(request.capabilities):
        name = sm_name(capability).upper()
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    for phase in phases(request.profile):
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shapes = input_shapes(
                tensor.name, tuple(tensor.shape), phase, request.profile.max_batch
            )
            profile.set_shape(tensor.name, *shapes)
        assert config.add_optimization_profile(profile) >= 0, "TensorRT rejects the profile"
    return config


def _monitor(trt: Any, progress: Progress, may_go_on: Callable[[], bool]) -> Any:
    """Forwards steps now and then; TensorRT ends the build when a step returns False."""
    steps: dict[str, int] = {}
    last_report_s = 0.0

    def phase_start(_self: Any, phase: str, _parent: str | None, n_steps: int) -> None:
        steps[phase] = n_steps

    def step_complete(_self: Any, phase: str, step: int) -> bool:
        nonlocal last_report_s
        now_s = time.monotonic()
        if now_s - last_report_s >= REPORT_INTERVAL_S:
            last_report_s = now_s
            progress(phase, step + 1, steps[phase])
        return may_go_on()

    def phase_finish(_self: Any, phase: str) -> None:
        progress(phase, steps[phase], steps[phase])

    return implement(
        trt.IProgressMonitor,
        phase_start=phase_start,
        step_complete=step_complete,
        phase_finish=phase_finish,
    )


class _PlanStream:
    """Writes the plan, and remembers the first failure."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.n_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._stream.write(data)
                self._stream.flush()
                self.n_bytes += len(data)
            except OSError as error:
                self.error = error
        return len(data) if self.error is None else 0


class _Log:
    """Writes TensorRT's log, and remembers its errors."""

    def __init__(self, stream: IO[str], *, hidden: str) -> None:
        self._stream = stream
        self._hidden = hidden
        self._errors: list[str] = []
        self.error: OSError | None = None

    def add(self, severity: str, text: str) -> None:
        if severity in {"ERROR", "INTERNAL_ERROR"} and _NO_DRIVER not in text:
            self._errors.append(text)
        if self.error is None:
            try:
                self._stream.write(f"{severity}: {text}\n".replace(self._hidden, ""))
            except OSError as error:
                self.error = error

    def failure(self, problem: str, errors: Sequence[str] = ()) -> RuntimeFailureError:
        """An error with TensorRT's words, the parser's rather than the log's."""
        words = [*dict.fromkeys(errors or self._errors)][:_SHOWN_ERRORS]
        return RuntimeFailureError(
            "\n".join([f"{problem}:", *(f"  {line}" for line in words or ["it gives no reason"])]),
            hint="export the ONNX file again in the standard dialect; the manifest names the "
            "versions that were used",
        )


def _parser_error(error: Any) -> str:
    node = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{node}: {error.desc()}" if node else error.desc()
