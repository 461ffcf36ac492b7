"""What the conversions cost: `docs/conversion.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS, THEIRS = "tightfit", "llama.cpp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One file from one checkpoint; llama.cpp's two programs count together."""

    model: str
    scheme: str
    maker: str
    cpu_s: float
    convert_cpu_s: float
    """Of that, llama.cpp's converter; it ran once for all file types of a round."""
    wall_s: float
    rss_bytes: int
    """Largest resident set of all processes together, mapped files included."""
    anonymous_bytes: int
    """The same without mapped files."""
    scratch_bytes: int
    """Largest size on disk beside the file."""
    file_bytes: int
    error: float
    """Relative squared error of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Of all conversions."""

    machine: Mapping[str, Any]
    skipped: tuple[str, ...]
    """What is not there, in words."""
    n_weights: Mapping[str, int]
    """By model."""
    runs: tuple[Run, ...]

    def write(self, file: Path) -> None:
        """As JSON with sorted keys."""
        file.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Results":
        """The inverse of `write`."""
        values = json.loads(file.read_text(encoding="utf-8"))
        runs = tuple(Run(**run) for run in values["runs"])
        return cls(**values | {"runs": runs, "skipped": tuple(values["skipped"])})
