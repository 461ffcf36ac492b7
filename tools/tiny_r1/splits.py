"""The reserved problems: held-out, validation and calibration, disjoint by problem text.

What: three lists drawn from one seed without repeats; training skips every text in them.
Why by text: the families are small, so a held-out problem has close relatives in training. The
score says how well the model learnt these families, not how well it generalizes beyond them.
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tools.tiny_r1.problems import FAMILIES, Problem, stream

HELD_OUT_PROBLEMS = 500  # as many as MATH-500
VALIDATION_PROBLEMS = 128  # scored during training, so that the held-out ones are seen once
CALIBRATION_PROBLEMS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The reserved lists."""

    held_out: tuple[Problem, ...]
    """Scored once, shipped."""
    validation: tuple[Problem, ...]
    """Scored at every probe of the training; not shipped."""
    calibration: tuple[Problem, ...]
    """Shipped for calibrating quantizers."""

    @property
    def texts(self) -> frozenset[str]:
        """Every reserved problem text."""
        return frozenset(p.text for p in self.held_out + self.validation + self.calibration)


def make_splits(seed: int) -> Splits:
    """The three reserved lists of a seed, without a repeated text within or across them."""
    wanted = HELD_OUT_PROBLEMS + VALIDATION_PROBLEMS + CALIBRATION_PROBLEMS
    unique: dict[str, Problem] = {}
    for problem in stream(f"{seed}:reserved", frozenset()):
        unique.setdefault(problem.text, problem)
        if len(unique) == wanted:
            break
    drawn = iter(unique.values())
    return Splits(
        held_out=tuple(islice(drawn, HELD_OUT_PROBLEMS)),
        validation=tuple(islice(drawn, VALIDATION_PROBLEMS)),
        calibration=tuple(drawn),
    )


def write_held_out(path: Path, problems: tuple[Problem, ...]) -> None:
    """MATH-500's fields, one problem a line."""
    _write_jsonl(
        path,
        [
            {
                "problem": problem.text,
                "solution": problem.solution,
                "answer": problem.answer,
                "subject": FAMILIES[problem.family][0],
                "level": problem.level,
                "unique_id": f"tiny-r1/{problem.family}/{index}.json",
            }
            for index, problem in enumerate(problems)
        ],
    )


def write_calibration(path: Path, problems: tuple[Problem, ...]) -> None:
    """The prompt's text and what follows the generation prompt, one sample a line."""
    _write_jsonl(path, [{"problem": p.text, "completion": p.completion} for p in problems])


def _write_jsonl(path: Path, rows: list[dict[str, str | int]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
