"""Several completions at once: continuous batching over slots, greedy or nucleus sampling.

Every prompt has its own random stream, seeded by (seed, index of the prompt). Slots are refilled
in the order of the prompts, so that the same call gives the same batches and the same tokens.

Sampling: softmax(logits / temperature), then nucleus sampling (Holtzman et al., 2020): the smallest
set of most probable tokens whose probability reaches `top_p`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tightfit.runtimes.llamacpp.engine import Context, Engine
from tightfit.runtimes.llamacpp.results import Generation, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A sequence of the KV cache with the completion that it is busy with."""

    seq: int
    prompt_index: int
    pending: list[int]
    """Tokens that the model has not seen yet: the prompt, then the token just sampled."""
    random: np.random.Generator
    position: int = 0
    output: list[int] = field(default_factory=list)


def choose_token(
    logits_V: NDArray[np.float32], sampling: Sampling, random: np.random.Generator
) -> int:
    """The next token id."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    p_V = np.exp(scaled_V - scaled_V.max())
    p_V /= p_V.sum()
    # Tokens below this sum to less than 1 - top_p: they are outside the nucleus, and leaving
    # them out makes the sort short.
    kept = np.flatnonzero(p_V >= (1 - sampling.top_p) / p_V.size)
    kept = kept[np.argsort(-p_V[kept], kind="stable")]
    cumulative = np.cumsum(p_V[kept])
    n_nucleus = int(np.searchsorted(cumulative, sampling.top_p)) + 1
    nucleus = kept[:n_nucleus]
    draw = random.random() * cumulative[min(n_nucleus, kept.size) - 1]
    return int(nucleus[min(int(np.searchsorted(cumulative, draw, "right")), nucleus.size - 1)])


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    parallel: int,
    on_finished: Callable[[int, Generation], None],
) -> None:
    """Complete every prompt; `on_finished` gets the prompt's index, in order of completion."""
    context = engine.context(min(parallel, len(prompts)))
    waiting = iter(enumerate(prompts))
    slots: dict[int, _Slot] = {}

    def refill(seq: int) -> None:
        context.forget(seq)
        slots.pop(seq, None)
        for index, prompt in waiting:
            slots[seq] = _Slot(
                seq=seq,
                prompt_index=index,
                pending=list(prompt),
                random=np.random.default_rng([sampling.seed, index]),
            )
            return

    for seq in range(min(parallel, len(prompts))):
        refill(seq)
    while slots:
        ready = _fill_batch(context, sorted(slots.values(), key=lambda slot: slot.seq))
        context.decode()
        chosen = [
            (slot, choose_token(context.logits_of(row, engine.n_vocab), sampling, slot.random))
            for slot, row in ready
        ]
        for slot, token in chosen:
            stop = _advance(engine, context, slot, token, sampling.max_tokens)
            if stop is not None:
                text = engine.detokenize(slot.output)
                done = Generation(token_ids=tuple(slot.output), text=text, stop=stop)
                on_finished(slot.prompt_index, done)
                refill(slot.seq)


def _fill_batch(context: Context, slots: Sequence[_Slot]) -> list[tuple[_Slot, int]]:
    """Queue pending tokens, at least one a slot; the slots that get logits, with their rows."""
    room = context.n_batch
    ready = []
    for n_before, slot in enumerate(slots):
        n_after = len(slots) - n_before - 1
        taken = slot.pending[: room - n_after]
        complete = len(taken) == len(slot.pending)
        for offset, token in enumerate(taken):
            last = complete and offset == len(taken) - 1
            row = context.add(token, slot.position + offset, slot.seq, want_logits=last)
        if complete:
            ready.append((slot, row))
        slot.position += len(taken)
        slot.pending = slot.pending[len(taken) :]
        room -= len(taken)
    return ready


def _advance(
    engine: Engine, context: Context, slot: _Slot, token: int, max_tokens: int
) -> StopReason | None:
    """Take in the sampled token; why the slot is done, or None."""
    if engine.is_end(token):
        return StopReason.END
    slot.output.append(token)
    slot.pending = [token]
    if len(slot.output) >= max_tokens:
        return StopReason.LENGTH
    return StopReason.CONTEXT if slot.position >= context.sequence_tokens else None
