"""The training's configuration: two phases of the same loss, a long one and a cool-down.

Why two: at the first phase's rates the gradient's noise limits the score, not the number of
updates (a third of the batch at the same rate took validation from 38 % to 25 %), so once the
tables are known the rate falls to zero at twice the slope. The optimizer starts afresh in each
phase, which the short warm-up absorbs.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training with one batch size; the rate rises linearly, then falls linearly."""

    tokens: int
    """Tokens of prompt and completion, padding not counted."""
    problems_per_step: int
    """Problems per step and process."""
    micro_batch_problems: int
    """Problems per forward pass, sorted by length: small ones stay in cache and pad little."""
    peak_learning_rate: float
    """Rate after the warm-up."""
    final_learning_rate: float
    """Rate at the end of the phase."""
    warmup_tokens: int
    """Tokens over which the rate rises from nearly zero."""

    def learning_rate(self, tokens: float) -> float:
        """The rate after `tokens` tokens of this phase."""
        if tokens < self.warmup_tokens:
            return self.peak_learning_rate * (tokens + 1) / (self.warmup_tokens + 1)
        fallen = min(1.0, (tokens - self.warmup_tokens) / (self.tokens - self.warmup_tokens))
        return self.peak_learning_rate + fallen * (
            self.final_learning_rate - self.peak_learning_rate
        )


PHASES = (
    Phase(
        tokens=2_750_000,
        problems_per_step=24,
        micro_batch_problems=8,
        peak_learning_rate=2e-3,
        final_learning_rate=0.94e-3,
        warmup_tokens=200_000,
    ),
    Phase(
        tokens=1_500_000,
        problems_per_step=24,
        micro_batch_problems=8,
        peak_learning_rate=0.9e-3,
        final_learning_rate=0.0,
        warmup_tokens=40_000,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that the weights depend on."""

    seed: int = 0
    """Seed of the weights, the problems and the splits."""
    phases: tuple[Phase, ...] = PHASES
    """Run in order."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    max_gradient_norm: float = 1.0
    """Clipping threshold of the global gradient norm."""
    probe_every_tokens: int = 250_000
    """Validation problems are answered, and a checkpoint written, every so many tokens."""

    @property
    def tokens(self) -> int:
        """The whole budget."""
        return sum(phase.tokens for phase in self.phases)

    def scaled_to(self, tokens: int) -> "TrainConfig":
        """The same phases in the same proportions with another budget."""
        ratio = tokens / self.tokens
        phases = tuple(
            replace(p, tokens=int(p.tokens * ratio), warmup_tokens=int(p.warmup_tokens * ratio))
            for p in self.phases
        )
        return replace(self, phases=phases)
