"""What is asked of `tightfit drift`, and the protocol that follows from it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tightfit.drift.data.sources import EMBEDDED
from tightfit.drift.gate import Limits
from tightfit.drift.protocol import PROTOCOLS, Protocol
from tightfit.errors import DriftError


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolChoice:
    """A protocol by name, and what is changed of it; None: as the protocol has it."""

    name: str | None = None
    """None: `greedy` for the embedded problems, `deepseek` for all others."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    samples: int | None = None
    seed: int = 0

    def resolve(self, source: str) -> Protocol:
        """The protocol for problems of that source; raises `UsageError`."""
        chosen = PROTOCOLS[self.name or ("greedy" if source == EMBEDDED else "deepseek")]
        changed = {
            field: value
            for field in ("temperature", "top_p", "max_tokens", "samples")
            if (value := getattr(self, field)) is not None
        }
        if any(
            changed.get(field, getattr(chosen, field)) != getattr(chosen, field)
            for field in ("temperature", "top_p")
        ):
            changed["name"] = "custom"
        if source == EMBEDDED:  # tiny-r1 was trained without an instruction
            changed["instruction"] = ""
        return dataclasses.replace(chosen, seed=self.seed, **changed)


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftRequest:
    """One `tightfit drift`."""

    artifact: Path | None
    """Folder of an export or of a Hugging Face checkpoint, a .gguf or .onnx file; None: what the
    endpoint serves."""
    baseline: str | None
    """The unquantized checkpoint: folder, Hub id or registered name; None: the embedded model."""
    revision: str | None = None
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server that runs the artifact."""
    endpoint_model: str | None = None
    """What the server calls it; None: the only one that it has."""
    vllm: bool = False
    """Whether a Hugging Face checkpoint runs in vLLM instead of transformers."""
    formats: tuple[str, ...] = ()
    """Artifacts of the folder to measure; empty: all that run on this machine."""
    subset: str | None = None
    """None: the embedded problems, or all of `dataset`."""
    dataset: str | None = None
    protocol: ProtocolChoice = dataclasses.field(default_factory=ProtocolChoice)
    limits: Limits = dataclasses.field(default_factory=Limits)
    sequential: bool = False
    """Stop as soon as the evidence suffices."""
    baseline_cache: Path | None = None
    """A kept baseline to start from and to keep up to date."""
    device: str = "cpu"
    """Where transformers computes."""
    provider: str = "cpu"
    """onnxruntime's execution provider."""
    command: str = "tightfit drift"
    """How to run it again."""


def fit_context(
    protocol: Protocol, prompts: Sequence[Sequence[int]], model_tokens: int, *, explicit: bool
) -> Protocol:
    """The protocol with as many tokens an answer as the model's context leaves.

    Raises `DriftError` where the user asked for more (`explicit`), or nothing is left.
    """
    longest = max(map(len, prompts))
    room = model_tokens - longest
    if room < 1:
        raise DriftError(
            f"a problem takes {longest} tokens, and the model's context is {model_tokens}",
            hint="choose problems that are shorter",
        )
    wanted = protocol.max_tokens if explicit else min(protocol.max_tokens, room)
    if not 1 <= wanted <= room:
        raise DriftError(
            f"answers of {wanted} tokens do not go with prompts of up to {longest}",
            allowed=f"1 to {room} tokens: the model's context is {model_tokens}",
            hint="lower --max-tokens",
        )
    return dataclasses.replace(protocol, max_tokens=wanted)
