"""The unquantized checkpoint, opened when it is first needed: often a kept baseline spares it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.validate import validate
from tightfit.drift.measures.tokens import TokenSample
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.drift.identity import content_sha256
from tightfit.pipeline.drift.request import DriftRequest
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.runtimes.base import chunk_tokens
from tightfit.runtimes.llamacpp import LlamaCpp, binding
from tightfit.runtimes.logprobs import TokenLogprobs, concatenate, keep_logprobs

RUNTIME = f"llama.cpp ({binding.PACKAGE} {binding.PACKAGE_VERSION})"
"""What writes the baseline's answers."""


class Original:
    """The baseline's model: in llama.cpp as a lossless file, and block by block in transformers."""

    def __init__(self, request: DriftRequest) -> None:
        """Check the device; nothing is opened. Raises `UsageError`."""
        self._request = request
        self._device = usable_device(request.device)
        self._resources = contextlib.ExitStack()
        self._checkpoint: Checkpoint | None = None
        self._runtime: LlamaCpp | None = None
        self.has_run = False
        """Whether the model itself had to run."""

    @property
    def logits_label(self) -> str:
        """What computes the log-probabilities."""
        return f"transformers {version('transformers')}, float32 on {self._device}"

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, downloaded if need be; raises `CheckpointError`."""
        if self._checkpoint is None:
            request = self._request
            located = locate_model(request.baseline, revision=request.revision)
            self._checkpoint = open_checkpoint(located)
            validate(self._checkpoint, self._checkpoint.architecture)
        return self._checkpoint

    def local_content(self) -> str | None:
        """Hash of a checkpoint that lies in a folder here; None for one on the Hub."""
        name = self._request.baseline
        is_here = name in (None, EMBEDDED_NAME) or Path(str(name)).expanduser().exists()
        return content_sha256(self.checkpoint) if is_here else None

    def runtime(self, context_tokens: int) -> LlamaCpp:
        """The checkpoint in llama.cpp, until `close`."""
        if self._runtime is None:
            path = self._resources.enter_context(lossless_gguf(self.checkpoint))
            opened = LlamaCpp(path, context_tokens=context_tokens)
            self._runtime = self._resources.enter_context(opened)
            self.has_run = True
        return self._runtime

    @property
    def n_blocks(self) -> int:
        """Decoder blocks."""
        return self.checkpoint.dimensions.n_layers

    def logprobs(
        self, samples: Sequence[TokenSample], on_block: Callable[[], None]
    ) -> Iterator[TokenLogprobs]:
        """Distributions over the answers of samples, from transformers in float32.

        All samples pass through a block, then `on_block` is called and the next one is read.
        """
        checkpoint = self.checkpoint
        decoder = Decoder(checkpoint.path, checkpoint.architecture, self._device)
        states = decoder.final_hidden(
            [sample.tokens for sample in samples], checkpoint.load, on_block=on_block
        )
        head_VD = checkpoint.load(checkpoint.architecture.head).to(self._device, torch.float32)
        for sample, hidden_TD in zip(samples, states, strict=True):
            yield _logprobs(hidden_TD, head_VD, sample)

    def close(self) -> None:
        """End the model's process, and delete its file."""
        self._runtime = None
        self._resources.close()


def _logprobs(hidden_TD: torch.Tensor, head_VD: torch.Tensor, sample: TokenSample) -> TokenLogprobs:
    scored_TD = hidden_TD[sample.first_scored - 1 : -1]
    following = torch.tensor(sample.tokens[sample.first_scored :]).numpy()
    rows = chunk_tokens(head_VD.shape[0])
    return concatenate(
        [
            keep_logprobs(
                (scored_TD[start : start + rows] @ head_VD.T).cpu().numpy(),
                following[start : start + rows],
            )
            for start in range(0, len(scored_TD), rows)
        ]
    )
