"""An onnxruntime session, opened with what the graph needs, and its failures as our errors.

onnxruntime computes MatMulNBits at the accuracy level that the node carries: level 4 rounds the
activations to int8, levels 0 and 1 keep them. What ships is measured by leaving that as it is; what
was used is in `LoadedModel.accuracy_levels`.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from tightfit.errors import ArtifactError, RuntimeFailureError, UsageError
from tightfit.export.onnx.file import OnnxFile
from tightfit.export.onnx.onnxruntime import require_onnxruntime
from tightfit.runtimes.base import usable_cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU = "CPUExecutionProvider"
_PROVIDER = "ExecutionProvider"
_DEVICES = {"CUDAExecutionProvider": "cuda"}
"""Where a provider keeps its tensors; `cpu` for those that are not named."""
_ERRORS_ONLY = 3
_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_CACHE_INPUT = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_FUSED_LEVEL = 4
_EXACT_LEVEL = 1
_BYTES = {TensorProto.INT8, TensorProto.UINT8}


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionOptions:
    """How to load and run a model."""

    threads: int | None = None
    """None: all cores that this process may use."""
    provider: str = CPU
    """An execution provider, by its name or in short (`cpu`, `cuda`)."""
    exact: bool = False
    """Whether INT8 weights with a scale per row keep float activations. onnxruntime fuses their
    DequantizeLinear, Transpose and MatMul into a MatMulNBits of level 4, which rounds activations
    to int8 (3e-2 of the logits)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFacts:
    """What the graph itself says of how to run it."""

    in_place_cache: bool
    """Whether the cache is appended to in place (GroupQueryAttention) or concatenated."""
    node_levels: frozenset[int]
    """Accuracy levels that MatMulNBits nodes carry."""
    dequantized_rows: bool
    """Whether INT8 weights with a scale per row are dequantized for a MatMul."""
    quantized_inputs: bool
    """Whether activations are rounded to FP8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheTensor:
    """One tensor of the KV cache."""

    past: str
    """Name of the input."""
    present: str
    """Name of the output."""
    heads: int
    width: int
    dtype: type[np.generic]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one sequence."""
        return self.heads * self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedModel:
    """A session and what is known of its graph."""

    path: Path
    session: "InferenceSession"
    facts: GraphFacts
    provider: str
    device: str
    threads: int
    cache: tuple[CacheTensor, ...]
    has_positions: bool
    """Whether position_ids is an input."""
    vocab_size: int
    accuracy_levels: tuple[int, ...]
    """That integer weights are multiplied at, in ascending order."""
    version: str
    """Of onnxruntime."""


def load_model(path: Path, options: SessionOptions) -> LoadedModel:
    """Open a session.

    Raises `MissingPackageError`, `UsageError` for a provider that is not there, `ArtifactError` for
    a file that is none of ours or damaged, `RuntimeFailureError` when onnxruntime refuses it.
    """
    runtime = require_onnxruntime()
    provider = _find_provider(options.provider, runtime.get_available_providers())
    facts = _read_facts(path)
    threads = options.threads or usable_cores()
    with failures_of(path):
        session = runtime.InferenceSession(
            str(path),
            _session_options(runtime, threads, exact=options.exact),
            providers=[provider],
            # It would fuse FP8 activations into integer operators that have no such type.
            disabled_optimizers=["QDQSelectorActionTransformer"] if facts.quantized_inputs else [],
        )
    if session.get_providers()[0] != provider:
        raise RuntimeFailureError(
            f"{provider} could not start, and onnxruntime fell back to "
            f"{session.get_providers()[0]}",
            hint="its libraries (CUDA, cuDNN) or the driver are missing: onnxruntime said above "
            "which; or use --provider cpu",
        )
    inputs = {value.name: value for value in session.get_inputs()}
    fused = {_EXACT_LEVEL if options.exact else _FUSED_LEVEL} if facts.dequantized_rows else set()
    return LoadedModel(
        path=path,
        session=session,
        facts=facts,
        provider=provider,
        device=_DEVICES.get(provider, "cpu"),
        threads=threads,
        cache=_cache_tensors(path, inputs),
        has_positions="position_ids" in inputs,
        vocab_size=_vocab_size(path, session),
        accuracy_levels=tuple(sorted(facts.node_levels | fused)),
        version=str(runtime.__version__),
    )


@contextlib.contextmanager
def failures_of(path: Path) -> Iterator[None]:
    """Turn onnxruntime's exceptions into `RuntimeFailureError`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # Its exceptions share no base class of their own.
    known: tuple[type[Exception], ...] = (
        RuntimeError,
        *(kind for kind in vars(state).values() if _is_exception(kind)),
    )
    try:
        yield
    except known as error:
        raise RuntimeFailureError(
            f"onnxruntime failed on {path}: {' '.join(str(error).split())}",
            hint="the model or its data file may be damaged or incomplete: look at it with "
            "`tightfit verify`, or export again; or memory ran out: ask for a shorter context",
        ) from error


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _session_options(runtime: Any, threads: int, *, exact: bool) -> Any:
    made = runtime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = _ERRORS_ONLY
    # Threads that wait must sleep: drift keeps several runtimes open, and they share the cores.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        made.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return made


def _find_provider(wanted: str, available: list[str]) -> str:
    for name in available:
        if wanted.lower() in (name.lower(), name.removesuffix(_PROVIDER).lower()):
            return name
    raise UsageError(
        f"onnxruntime has no execution provider {wanted!r} here",
        allowed="available: " + ", ".join(available),
        hint="for an NVIDIA GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu",
    )


def _read_facts(path: Path) -> GraphFacts:
    graph = OnnxFile(path).graph
    operators = {node.op_type for node in graph.node}
    element_types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    has_float8 = TensorProto.FLOAT8E4M3FN in element_types.values()
    return GraphFacts(
        in_place_cache="GroupQueryAttention" in operators,
        node_levels=frozenset(
            _attribute(node, "accuracy_level")
            for node in graph.node
            if node.op_type == "MatMulNBits"
        ),
        dequantized_rows=any(
            node.op_type == "DequantizeLinear"
            and element_types.get(node.input[0]) in _BYTES
            and not _attribute(node, "block_size")
            for node in graph.node
        ),
        quantized_inputs="QuantizeLinear" in operators and has_float8,
    )


def _attribute(node: onnx.NodeProto, name: str) -> int:
    """A number's value; 0 where the node leaves it out."""
    return next((each.i for each in node.attribute if each.name == name), 0)


def _cache_tensors(path: Path, inputs: dict[str, Any]) -> tuple[CacheTensor, ...]:
    tensors = []
    for name, value in inputs.items():
        if _CACHE_INPUT.fullmatch(name):
            _, heads, _, width = value.shape
            if not isinstance(heads, int) or not isinstance(width, int):
                raise _foreign(path, f"{name} has the shape {value.shape}")
            tensors.append(
                CacheTensor(
                    past=name,
                    present=name.replace("past_key_values", "present"),
                    heads=heads,
                    width=width,
                    dtype=_DTYPES[value.type],
                )
            )
    if not tensors or not {"input_ids", "attention_mask"} <= inputs.keys():
        raise _foreign(path, f"its inputs are {', '.join(inputs)}")
    return tuple(tensors)


def _vocab_size(path: Path, session: "InferenceSession") -> int:
    for output in session.get_outputs():
        if output.name == "logits" and isinstance(output.shape[-1], int):
            return output.shape[-1]
    raise _foreign(path, "it has no output `logits` of a fixed width")


def _foreign(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is no language model with a KV cache: {reason}",
        allowed="inputs input_ids, attention_mask, past_key_values.N.key/value; outputs logits, "
        "present.N.key/value",
        hint="give the ONNX file that `tightfit export` wrote",
    )
