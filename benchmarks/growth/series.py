"""What is exported: each series lets one size grow and holds the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.conversion.checkpoints import Llama
from benchmarks.race import subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Calibration text."""

    n_sequences: int
    length_tokens: int
    """Of each sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One export."""

    amount: int
    """What grows: weights, layers or tokens."""
    model: Llama
    text: Text | None
    """None: round to nearest, without calibration; otherwise GPTQ on this."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Point":
        """The inverse of `asdict`."""
        text = values["text"]
        return cls(
            amount=values["amount"],
            model=Llama(**values["model"]),
            text=None if text is None else Text(**text),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Exports of growing size, the smallest first."""

    title: str
    what: str
    """A sentence on what is exported."""
    unit: str
    """Of what grows."""
    points: tuple[Point, ...]


def _mini(n_layers: int) -> Llama:
    """The shape of the race's model."""
    return Llama(
        hidden=subject.HIDDEN,
        intermediate=subject.INTERMEDIATE,
        n_layers=n_layers,
        n_heads=subject.HEADS,
        n_kv_heads=subject.KV_HEADS,
        vocab=subject.VOCABULARY,
    )


def _over_weights(*models: Llama) -> Series:
    return Series(
        title="Weights, without calibration",
        what="Llamas in BF16, deeper and wider as real ones are, rounded to nearest.",
        unit="weights",
        points=tuple(Point(amount=each.count(), model=each, text=None) for each in models),
    )


def _over_layers(text: Text, *counts: int) -> Series:
    return Series(
        title="Layers, GPTQ",
        what=f"Llamas of one width, GPTQ on {text.n_sequences} x {text.length_tokens} tokens.",
        unit="layers",
        points=tuple(Point(amount=each, model=_mini(each), text=text) for each in counts),
    )


def _over_tokens(model: Llama, length_tokens: int, *sequences: int) -> Series:
    texts = [Text(n_sequences=count, length_tokens=length_tokens) for count in sequences]
    return Series(
        title="Calibration tokens, GPTQ",
        what=f"A Llama of {model.n_layers} layers, GPTQ on sequences of {length_tokens} tokens.",
        unit="tokens",
        points=tuple(
            Point(amount=text.n_sequences * length_tokens, model=model, text=text) for text in texts
        ),
    )


FULL: Final[Mapping[str, Series]] = {
    "weights": _over_weights(
        Llama(hidden=768, intermediate=2048, n_layers=8, n_heads=12, n_kv_heads=4),
        Llama(hidden=1024, intermediate=2816, n_layers=22, n_heads=16, n_kv_heads=4),
        Llama(n_layers=20),  # TinyLlama 1.1B without its last two blocks
        Llama(hidden=3072, intermediate=8192, n_layers=28, n_heads=24, n_kv_heads=8),
    ),
    "layers": _over_layers(Text(n_sequences=4, length_tokens=256), 4, 8, 16, 32),
    "tokens": _over_tokens(_mini(subject.LAYERS), subject.LENGTH_TOKENS, 4, 16, 64, 128),
}
"""0.1 to 3 billion weights, 4 to 32 layers, 2k to 64k tokens."""
SMALL: Final[Mapping[str, Series]] = {
    "weights": _over_weights(_mini(2), _mini(4)),
    "layers": _over_layers(Text(n_sequences=2, length_tokens=64), 2, 4),
    "tokens": _over_tokens(_mini(2), 128, 2, 8),
}
"""A minute, to see that it works: its figures mean nothing."""
