"""Several completions at once: continuous batching over slots.

Slots are refilled in the order of the prompts, so that the same call gives the same batches and the
same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tightfit.runtimes.base import Finished
from tightfit.runtimes.llamacpp.engine import Context, Engine
from tightfit.runtimes.results import Generation, StopReason
from tightfit.runtimes.sampling import Sampling, choose_token


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


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    parallel: int,
    on_finished: Finished,
) -> None:
    """Complete every prompt; `parallel` is at most their number."""
    context = engine.context(parallel)
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
                random=sampling.random(index),
            )
            return

    for seq in range(parallel):
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
