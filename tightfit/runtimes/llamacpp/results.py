"""What the llama.cpp runtime returns."""

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

    package_version: str
    """Version of `xllamacpp`."""
    library_version: str
    """What the llama.cpp library calls itself."""
    cpu_features: str
    """llama.cpp's own list of what it was built for."""
    threads: int
    context_tokens: int
    kv_type: str
    model_bytes: int
    """Model buffers over all devices, as llama.cpp logs them."""
    kv_bytes: int
    """KV cache of one sequence of `context_tokens`."""
    compute_bytes: int
    """Compute buffers over all devices."""

    @property
    def label(self) -> str:
        """Name and version in a few words."""
        return f"llama.cpp (xllamacpp {self.package_version})"
