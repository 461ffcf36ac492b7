"""An engine running on the GPU of this machine: one batch at a time, its KV cache on the card.

Every step reads the cache from one set of buffers and writes it, longer by the new tokens, to
another; then the two change places. Prompts are read in chunks under the prefill profile, answers
token by token under the decode profile (`profile`). Buffers are torch's, TensorRT gets addresses.

Never executed on a GPU by its authors, who had none: what is tested is this code against a module
that stands in for TensorRT and computes in onnxruntime, on the same buffers.

Shape legend: B batch, S new tokens, T all tokens so far, V vocabulary.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightfit.errors import RuntimeFailureError
from tightfit.export.tensorrt.golden import Batch
from tightfit.runtimes.tensorrt.package import Package, implement, import_package
from tightfit.runtimes.tensorrt.profile import DECODE, PREFILL

_DTYPES = {"HALF": torch.float16, "FLOAT": torch.float32, "BF16": torch.bfloat16}
"""By TensorRT's name."""
_PAST, _PRESENT = "past_key_values.", "present."
_SHOWN_ERRORS = 4
_MAXIMUM = 2
"""Index of the greatest shape of a profile."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchRun:
    """What an engine made of a batch."""

    logits_BTV: NDArray[np.float32]
    """As `Golden.logits_BTV`."""
    tokens_per_s: float
    """Decoding: new tokens of all sequences a second, without the prompt."""
    device: str
    """The card's name."""


class Engine:
    """A deserialized engine with its buffers."""

    def __init__(
        self, path: Path, *, package: Package = Package.RTX, device: str | None = None
    ) -> None:
        """Load `path` onto `device`, a torch device; None is the first GPU.

        Raises `MissingPackageError`, and `RuntimeFailureError` when there is no GPU or driver, or
        TensorRT refuses the file.
        """
        trt = import_package(package)
        self.device = torch.device(device or find_gpu())
        self._errors: list[str] = []
        # Both must outlive the engine.
        self._logger = implement(trt.ILogger, log=lambda _self, kind, text: self._log(kind, text))
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise self._failure(f"TensorRT does not load {path} on this GPU")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure(f"TensorRT cannot run {path}: is the GPU's memory full?")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._caches = [name for name in names if name.startswith(_PAST)]
        self.vocab_size = int(self._engine.get_tensor_shape("logits")[-1])
        longest = self._engine.get_tensor_profile_shape(self._caches[0], DECODE)[_MAXIMUM]
        self.max_batch, self.context_tokens = int(longest[0]), int(longest[2]) + 1
        prompt = self._engine.get_tensor_profile_shape("input_ids", PREFILL)[_MAXIMUM]
        self.chunk_tokens = int(prompt[1])
        self._cached_tokens = 0
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def device_name(self) -> str:
        """The card's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def run(self, batch: Batch) -> BatchRun:
        """The prompts, then the forced tokens one at a time; logits of every column.

        Raises `RuntimeFailureError` when the batch does not fit the profiles or the GPU fails.
        """
        n_columns = batch.input_ids_BT.shape[1]
        self._begin(*batch.input_ids_BT.shape)
        pieces = []
        for start in range(0, batch.prompt_tokens, self.chunk_tokens):
            end = min(start + self.chunk_tokens, batch.prompt_tokens)
            pieces.append(self._step(batch, start, end, PREFILL))
        self._synchronize()
        begin_s = time.perf_counter()
        pieces += [
            self._step(batch, column, column + 1, DECODE)
            for column in range(batch.prompt_tokens, n_columns)
        ]
        self._synchronize()
        seconds = time.perf_counter() - begin_s
        n_decoded = len(batch.input_ids_BT) * (n_columns - batch.prompt_tokens)
        return BatchRun(
            logits_BTV=torch.cat(pieces, dim=1).float().cpu().numpy(),
            tokens_per_s=n_decoded / seconds,
            device=self.device_name,
        )

    def _begin(self, n_rows: int, n_columns: int) -> None:
        """Empty caches for a batch."""
        if n_rows > self.max_batch or n_columns > self.context_tokens:
            raise RuntimeFailureError(
                f"a batch of {n_rows} sequences of {n_columns} tokens",
                allowed=f"the engine was built for {self.max_batch} of {self.context_tokens}",
                hint="export it again with a longer --context",
            )
        self._cached_tokens = 0
        for name in self._caches:
            _, heads, _, width = self._engine.get_tensor_shape(name)
            n_elements = n_rows * heads * n_columns * width
            dtype = self._dtype(name)
            self._buffers[name] = (
                torch.empty(n_elements, dtype=dtype, device=self.device),
                torch.empty(n_elements, dtype=dtype, device=self.device),
            )

    def _step(self, batch: Batch, start: int, end: int, profile: int) -> Tensor:
        """Logits (B, S, V) of columns `start` to `end`, whose keys and values join the cache."""
        stream = self._stream()
        self._check(
            self._context.set_optimization_profile_async(profile, stream), "choosing a profile"
        )
        inputs = {
            "input_ids": batch.input_ids_BT[:, start:end],
            "attention_mask": batch.attention_mask_BT[:, :end],
            "position_ids": batch.position_ids_BT[:, start:end],
        }
        # Kept until the step is done: TensorRT has only their addresses.
        held = {name: torch.tensor(values, device=self.device) for name, values in inputs.items()}
        n_rows, n_new = held["input_ids"].shape
        for name, values in held.items():
            self._bind(name, values, tuple(values.shape))
        for name in self._caches:
            past, present = self._buffers[name]
            _, heads, _, width = self._engine.get_tensor_shape(name)
            self._bind(name, past, (n_rows, heads, self._cached_tokens, width))
            self._bind(_PRESENT + name.removeprefix(_PAST), present)
            self._buffers[name] = present, past
        shape = (n_rows, n_new, self.vocab_size)
        logits = torch.empty(shape, dtype=self._dtype("logits"), device=self.device)
        self._bind("logits", logits)
        self._check(self._context.execute_async_v3(stream), "a step")
        self._synchronize()
        self._cached_tokens += n_new
        return logits

    def _bind(self, name: str, buffer: Tensor, shape: tuple[int, ...] | None = None) -> None:
        if shape is not None:
            self._check(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")
        self._check(self._context.set_tensor_address(name, buffer.data_ptr()), name)

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(f"TensorRT failed at {what}")

    def _dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self._engine.get_tensor_dtype(name).name]

    def _stream(self) -> int:
        on_gpu = self.device.type == "cuda"
        return torch.cuda.current_stream(self.device).cuda_stream if on_gpu else 0

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _log(self, severity: Any, text: str) -> None:
        if severity.name in {"ERROR", "INTERNAL_ERROR"}:
            self._errors.append(text)

    def _failure(self, problem: str) -> RuntimeFailureError:
        words = [f"  {line}" for line in self._errors[-_SHOWN_ERRORS:]]
        return RuntimeFailureError(
            "\n".join([f"{problem}:" if words else problem, *words]),
            hint="an engine runs on the cards and with the TensorRT version that the manifest "
            "names; `tightfit build-engine` builds one for this card",
        )


def find_gpu() -> str:
    """The torch device of the first GPU; raises `RuntimeFailureError` where there is none."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this torch is built without CUDA)"
        raise RuntimeFailureError(
            f"this machine has no NVIDIA GPU or no driver for it{built}",
            allowed="an engine runs only on a card of the compute capability it was built for",
            hint="run the same command on the machine that has the card, with its driver and "
            "torch for CUDA installed; here the engine is checked structurally",
        )
    return "cuda:0"


def card_capability() -> str:
    """Compute capability of the first GPU, e.g. `8.6`; raises like `find_gpu`."""
    major, minor = torch.cuda.get_device_capability(find_gpu())
    return f"{major}.{minor}"
