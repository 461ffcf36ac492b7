"""What every runtime returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class StopReason(StrEnum):
    """Why a generation ended."""

    END = "end"
    """The model emitted an end-of-generation token (not part of `token_ids`)."""
    LENGTH = "length"
    """`max_tokens` were generated."""
    CONTEXT = "context"
    """The context was full before `max_tokens`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One completion."""

    token_ids: tuple[int, ...]
    """Generated tokens, without the prompt and without the end-of-generation token."""
    text: str
    """`token_ids` as text, special tokens such as `</think>` written out."""
    stop: StopReason

    @property
    def finished(self) -> bool:
        """Whether the model ended by itself."""
        return self.stop is StopReason.END


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemInfo:
    """What ran; the drift report and so the manifest hold it."""

    label: str
    """The runtime and its version in a few words."""
    device: str
    """What computed, e.g. `cpu`."""
    threads: int
    context_tokens: int
    kv_type: str
    """Number type of the KV cache, e.g. `f16`."""
    kv_bytes: int
    """KV cache of one sequence of `context_tokens`."""
    facts: Mapping[str, str | int]
    """What only this runtime tells, by name: CPU features, sizes of its buffers."""
