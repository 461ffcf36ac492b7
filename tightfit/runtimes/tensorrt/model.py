"""An engine as a runtime: logits of all positions and completions, on the GPU of this machine.

Completions are made in static batches of as many prompts as the engine was built for: prompts are
padded on the right, and a batch ends when its last answer does.

Shape legend: B batch, S prompt columns, T columns (positions), V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tightfit.errors import RuntimeFailureError
from tightfit.export.manifest import Artifact, EngineRecord
from tightfit.export.tensorrt.golden import Batch
from tightfit.runtimes.base import Finished, chunk_tokens, usable_cores
from tightfit.runtimes.local import LocalRuntime
from tightfit.runtimes.results import Generation, StopReason, SystemInfo
from tightfit.runtimes.sampling import Sampling, choose_token
from tightfit.runtimes.tensorrt.engine import Engine, card_capability
from tightfit.runtimes.tensorrt.package import Package, package_of
from tightfit.runtimes.tensorrt.profile import DECODE, PREFILL
from tightfit.runtimes.tokenizer import FolderTokenizer


def open_engine(folder: Path, artifact: Artifact, *, context_tokens: int) -> "EngineModel":
    """The engine of a folder that is for this machine's card.

    Raises `MissingPackageError` and `RuntimeFailureError`, also where no engine is for the card.
    """
    record = _record_for_this_card(artifact)
    return EngineModel(
        folder / record.file,
        folder,
        context_tokens=context_tokens,
        label=record.builder,
        package=package_of(record.builder),
    )


def _record_for_this_card(artifact: Artifact) -> EngineRecord:
    card = card_capability()
    for record in artifact.engines:
        if card in record.compute_capabilities:
            return record
    built = [name for record in artifact.engines for name in record.compute_capabilities]
    raise RuntimeFailureError(
        f"no engine here is for {torch.cuda.get_device_name()} (compute capability {card})",
        allowed=f"engines are for: {', '.join(built)}",
        hint="`tightfit build-engine` builds one for this card",
    )


@dataclass(kw_only=True, slots=True)
class _Row:
    """A completion under way."""

    index: int
    prompt: Sequence[int]
    random: np.random.Generator
    length: int = field(init=False)
    """Tokens, prompt included, that the engine has seen."""
    output: list[int] = field(default_factory=list)
    running: bool = True

    def __post_init__(self) -> None:
        self.length = len(self.prompt)


class EngineModel(Engine, LocalRuntime):
    """A `Runtime` on the engine's steps; use it in a `with`."""

    def __init__(
        self,
        path: Path,
        tokenizer_folder: Path,
        *,
        context_tokens: int,
        label: str,
        package: Package = Package.RTX,
        device: str | None = None,
    ) -> None:
        """Load `path`; `context_tokens` beyond those of the engine are not there."""
        super().__init__(path, package=package, device=device)
        self.path = path
        self.context_tokens = min(context_tokens, self.context_tokens)
        self._tokenizer = FolderTokenizer(tokenizer_folder)
        self.system_info = SystemInfo(
            label=f"{label} ({self.device_name})",
            device=self.device_name,
            threads=usable_cores(),
            context_tokens=self.context_tokens,
            kv_type=str(self._dtype(self._caches[0])).removeprefix("torch."),
            kv_bytes=self.context_tokens * sum(map(self._token_bytes, self._caches)),
            facts={"max_batch": self.max_batch},
        )

    def close(self) -> None:
        """Give back the cache's memory."""
        self._buffers.clear()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens written in it read as such, none added."""
        return self._tokenizer.encode(text)

    def logits_chunks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in chunks of at most 64 MiB; any other call ends the stream."""
        self._check_tokens(tokens)
        batch = _padded([tokens], n_columns=len(tokens))
        self._begin(1, len(tokens))
        for _, logits_BSV in self._read(batch, chunk_tokens(self.vocab_size)):
            yield logits_BSV[0]

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        parallel: int,
        on_finished: Finished,
    ) -> None:
        n_rows = min(parallel, self.max_batch)
        for start in range(0, len(prompts), n_rows):
            rows = [
                _Row(index=index, prompt=prompts[index], random=sampling.random(index))
                for index in range(start, min(start + n_rows, len(prompts)))
            ]
            self._complete_batch(rows, sampling, on_finished)

    def _complete_batch(
        self, rows: Sequence[_Row], sampling: Sampling, on_finished: Finished
    ) -> None:
        prompts = [row.prompt for row in rows]
        n_columns = min(max(map(len, prompts)) + sampling.max_tokens, self.context_tokens)
        batch = _padded(prompts, n_columns=n_columns)
        self._begin(len(rows), n_columns)
        for start, logits_BSV in self._read(batch, self.chunk_tokens):
            for row, logits_SV in zip(rows, logits_BSV, strict=True):
                if start < row.length <= start + len(logits_SV):
                    self._take(row, logits_SV[row.length - 1 - start], sampling, on_finished)
        for column in range(batch.prompt_tokens, n_columns):
            if not any(row.running for row in rows):
                return
            for number, row in enumerate(rows):
                # A row that has ended is fed its last token: nobody reads what follows.
                batch.input_ids_BT[number, column] = row.output[-1] if row.output else 0
                batch.position_ids_BT[number, column] = row.length
                row.length += 1
            logits_B1V = self._step(batch, column, column + 1, DECODE).float().cpu().numpy()
            for row, logits_1V in zip(rows, logits_B1V, strict=True):
                if row.running:
                    self._take(row, logits_1V[0], sampling, on_finished)
        for row in rows:
            if row.running:
                self._finish(row, StopReason.CONTEXT, on_finished)

    def _read(self, batch: Batch, n_chunk: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Run the prompts; first column and logits (B, S, V) of every chunk."""
        n_chunk = min(n_chunk, self.chunk_tokens)
        for start in range(0, batch.prompt_tokens, n_chunk):
            end = min(start + n_chunk, batch.prompt_tokens)
            yield start, self._step(batch, start, end, PREFILL).float().cpu().numpy()

    def _take(
        self,
        row: _Row,
        logits_V: NDArray[np.float32],
        sampling: Sampling,
        on_finished: Finished,
    ) -> None:
        """Choose a row's next token, and end the row if it was the last."""
        token = choose_token(logits_V, sampling, row.random)
        if token in self._tokenizer.end_ids:
            self._finish(row, StopReason.END, on_finished)
            return
        row.output.append(token)
        if len(row.output) >= sampling.max_tokens:
            self._finish(row, StopReason.LENGTH, on_finished)

    def _finish(self, row: _Row, stop: StopReason, on_finished: Finished) -> None:
        row.running = False
        text = self._tokenizer.decode(row.output)
        on_finished(row.index, Generation(token_ids=tuple(row.output), text=text, stop=stop))

    def _token_bytes(self, cache: str) -> int:
        _, heads, _, width = self._engine.get_tensor_shape(cache)
        return int(heads) * int(width) * self._dtype(cache).itemsize


def _padded(prompts: Sequence[Sequence[int]], *, n_columns: int) -> Batch:
    """Prompts padded on the right, with room for what follows them."""
    shape = (len(prompts), n_columns)
    ids_BT, mask_BT = np.zeros(shape, np.int64), np.ones(shape, np.int64)
    prompt_tokens = max(map(len, prompts))
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = prompt
        mask_BT[row, len(prompt) : prompt_tokens] = 0
    return Batch(
        input_ids_BT=ids_BT,
        attention_mask_BT=mask_BT,
        position_ids_BT=np.maximum(mask_BT.cumsum(axis=1) - 1, 0),
        prompt_tokens=prompt_tokens,
    )
