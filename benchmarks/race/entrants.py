"""Who runs in the race, and on how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OURS: Final = "tightfit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """A program and how it is set."""

    label: str
    """Unique within a race, as the table names it."""
    package: str
    """Distribution that must be installed."""
    module: str
    """Of `benchmarks.race`; run as `python -m MODULE *arguments MODEL OUTPUT SEQUENCES`."""
    arguments: tuple[str, ...] = ()
    is_slow: bool = False
    """Takes twenty times as long as the others: one round, on the fewest sequences."""

    @property
    def is_ours(self) -> bool:
        """Not a peer."""
        return self.package == OURS


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """One algorithm."""

    title: str
    entrants: tuple[Entrant, ...]
    sequences: tuple[int, ...]
    """Of 512 tokens."""
    has_limit: bool
    """Whether `limit` counts its work."""


def _ours(label: str, method: str) -> Entrant:
    return Entrant(label=label, package=OURS, module="ours", arguments=(method,))


def _gptqmodel(label: str, dtype: str) -> Entrant:
    return Entrant(
        label=f"gptqmodel, {label}", package="gptqmodel", module="gptq_model", arguments=(dtype,)
    )


def _llm_compressor(label: str, method: str) -> Entrant:
    return Entrant(
        label=f"llm-compressor, {label}",
        package="llmcompressor",
        module="llm_compressor",
        arguments=(method,),
    )


RACES: Final[Mapping[str, Race]] = {
    "gptq": Race(
        title="GPTQ, 4 bits in groups of 128, symmetric",
        entrants=(
            _ours("tightfit", "gptq:quantized:medium"),
            _ours("tightfit, `--calibrate-from original`", "gptq:original:medium"),
            _ours("tightfit, `--calib-precision highest`", "gptq:quantized:highest"),
            _gptqmodel("group-aware", "float32"),
            _gptqmodel("group-aware, in bfloat16", "bfloat16"),
            _llm_compressor("static act-order", "gptq:static"),
            _llm_compressor("no act-order", "gptq:none"),
            Entrant(
                label="auto-round-light",
                package="auto-round",
                module="auto_rounding",
                is_slow=True,
            ),
        ),
        sequences=(16, 64),
        has_limit=True,
    ),
    "awq": Race(
        title="AWQ, 4 bits in groups of 128, with zero points",
        entrants=(_ours("tightfit", "awq:quantized:medium"), _llm_compressor("AWQ", "awq")),
        sequences=(4,),
        has_limit=False,
    ),
}
PACKAGES: Final = (
    OURS,
    "torch",
    "transformers",
    "numpy",
    *dict.fromkeys(
        entrant.package
        for race in RACES.values()
        for entrant in race.entrants
        if not entrant.is_ours
    ),
)
"""Whose versions are written down."""
