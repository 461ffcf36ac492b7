"""Which shapes an engine accepts: two optimization profiles, both over a growing KV cache.

    prefill   S = 1 .. prompt_tokens    P = 0 .. context - 1, tuned for S = prompt_tokens, P = 0
    decode    S = 1                     P = 0 .. context - 1, tuned for P = context / 2

Prompts longer than `prompt_tokens` are read in chunks. Against one profile of all lengths (135M
model, context 4096): 81 and 23 MB of activations instead of 484 MB, and kernels for one token; the
weights are stored once for both, and the plan grows by a few MB of kernels.

Shape legend: B batch, S new tokens, P tokens in the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PREFILL, DECODE = 0, 1
"""Indices of the two profiles."""
PROMPT_CHUNK_TOKENS = 512
"""Enough rows to keep the matrix units busy; llama.cpp's micro-batch, too."""
Range = tuple[int, int, int]
"""Least, typical and greatest size."""
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, typical and greatest shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What an engine is built for."""

    context_tokens: int
    """Longest sequence, prompt and answer together."""
    max_batch: int = 1
    """Sequences at a time."""
    prompt_tokens: int = PROMPT_CHUNK_TOKENS
    """Longest chunk of a prompt; at most the context is used."""

    def __post_init__(self) -> None:
        assert self.context_tokens > 1
        assert self.max_batch > 0
        assert self.prompt_tokens > 0

    @property
    def chunk_tokens(self) -> int:
        """Most new tokens of one step."""
        return min(self.prompt_tokens, self.context_tokens)


def phases(profile: Profile) -> tuple[tuple[Range, Range], tuple[Range, Range]]:
    """New and cached tokens (S, P) of the prefill and the decode profile."""
    longest_past = profile.context_tokens - 1
    prefill = (1, profile.chunk_tokens, profile.chunk_tokens), (0, 0, longest_past)
    decode = (1, 1, 1), (0, profile.context_tokens // 2, longest_past)
    return prefill, decode


def input_shapes(
    name: str, fixed: Sequence[int], phase: tuple[Range, Range], max_batch: int
) -> Shapes:
    """Shapes of a graph input: `fixed` is its shape in the file, -1 where it is dynamic.

    `input_ids` and `position_ids` are (B, S), `attention_mask` (B, P + S), and each cache
    `past_key_values.*` (B, heads, P, width).
    """
    new, past = phase
    batch = (1, 1, max_batch)
    if name.startswith("past_key_values."):
        dynamic = {0: batch, 2: past}
    elif name == "attention_mask":
        total = (new[0] + past[0], new[1] + past[1], new[2] + past[2])
        dynamic = {0: batch, 1: total}
    else:
        assert name in {"input_ids", "position_ids"}, name
        dynamic = {0: batch, 1: new}
    low, typical, high = (
        tuple(dynamic[axis][which] if axis in dynamic else size for axis, size in enumerate(fixed))
        for which in range(3)
    )
    return low, typical, high
