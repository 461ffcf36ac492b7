"""One problem with its known answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A problem, whatever data set it comes from."""

    unique_id: str
    """Of its data set: `test/algebra/2584.json`, `aime24/60`, `gsm8k/17`."""
    problem: str
    """The question, LaTeX within dollar signs."""
    answer: str
    """The gold answer, LaTeX without delimiters."""
    solution: str = ""
    """A worked solution, where the data set has one."""
    subject: str = ""
    """Empty where the data set has none."""
    level: int | None = None
    """1 (easiest) to 5; None where the data set has none."""
    original: Mapping[str, Any]
    """The row as the data set holds it, every field."""
