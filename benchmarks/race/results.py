"""What a race measured: `docs/race.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.race.limit import gptq_flops
from benchmarks.race.spread import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One process."""

    race: str
    entrant: str
    sequences: int
    threads: int
    cpu_s: float
    wall_s: float
    memory_bytes: int
    """Peak over what was held before the quantization began."""
    rss_bytes: int
    """Peak of the whole process."""
    output_error: float
    kl_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Of a whole race."""

    machine: Mapping[str, Any]
    n_layers: int
    """Of the model."""
    skipped: tuple[str, ...]
    """Packages that are not installed."""
    rates: Mapping[str, list[float]]
    """Floating-point operations of one core by CPU second, by number of threads (JSON has text), in
    float32 as torch computes it unasked."""
    own_rates: Mapping[str, list[float]]
    """The same as tightfit computes it."""
    runs: tuple[Run, ...]

    def limit_s(self, sequences: int, threads: int) -> float:
        """CPU seconds of GPTQ at the median rate."""
        return gptq_flops(self.n_layers, sequences) / median(self.rates[str(threads)])

    def own_limit_s(self, sequences: int, threads: int) -> float:
        """The same at tightfit's."""
        return gptq_flops(self.n_layers, sequences) / median(self.own_rates[str(threads)])

    def write(self, file: Path) -> None:
        """As JSON with sorted keys."""
        file.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Results":
        """The inverse of `write`."""
        values = json.loads(file.read_text(encoding="utf-8"))
        runs = tuple(Run(**run) for run in values["runs"])
        return cls(**values | {"runs": runs, "skipped": tuple(values["skipped"])})
