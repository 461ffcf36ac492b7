"""What comes back from a model that is not ours, as a `Generation`."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.results import Generation, StopReason

STOPS: Final = {
    "stop": StopReason.END,
    "eos_token": StopReason.END,  # TGI's own word
    "length": StopReason.LENGTH,
}
"""`finish_reason` to why it ended. Any other (abort, error, content_filter) is no completion."""


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; `FolderTokenizer` is one."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens written in the text read as such, none added."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text, special tokens written out."""


def request_seed(seed: int, stream: int) -> int:
    """The seed of one completion, from that of the run and the number of its random stream.

    31 bits: llama.cpp takes 2^32 - 1 as "choose one", and some servers read a signed number.
    """
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0] >> 1)


def stop_reason(finish_reason: object, *, max_tokens: int, room_tokens: int) -> StopReason:
    """Why it ended, where `room_tokens` were left of the context for `max_tokens`."""
    if not isinstance(finish_reason, str) or finish_reason not in STOPS:
        raise RuntimeFailureError(
            f"a completion ended with finish_reason {finish_reason!r}",
            allowed=f"one of {', '.join(STOPS)}",
            hint="the server broke it off: look at its log",
        )
    stop = STOPS[finish_reason]
    cut = stop is StopReason.LENGTH and room_tokens < max_tokens
    return StopReason.CONTEXT if cut else stop


def from_tokens(tokens: Sequence[int], stop: StopReason, tokenizer: TokenizerLike) -> Generation:
    """A completion whose tokens are known."""
    kept = list(tokens)
    while kept and kept[-1] in tokenizer.end_ids:
        kept.pop()
    return Generation(token_ids=tuple(kept), text=tokenizer.decode(kept), stop=stop)


def from_text(text: str, stop: StopReason, tokenizer: TokenizerLike) -> Generation:
    """A completion of which only the text is known: its tokens are those of the text."""
    markers = tuple(tokenizer.decode([end]) for end in tokenizer.end_ids)
    while ending := next((each for each in markers if each and text.endswith(each)), None):
        text = text.removesuffix(ending)
    return Generation(token_ids=tuple(tokenizer.encode(text)), text=text, stop=stop)
