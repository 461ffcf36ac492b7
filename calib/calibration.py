r"""Calibration data: token sequences whose activations tell which weights matter.

A set comes from the embedded traces in R1's format, or from a file:
- `.jsonl`, one object a line: `{"problem", "completion"}` (the completion is what follows
  `<think>\\n`: reasoning, `</think>`, answer), `{"messages": [...]}`, or `{"text"}`;
- `.txt`: running text, cut into pieces of the sample length.
Conversations pass through the checkpoint's chat template. Sequences keep their own lengths and are
never padded here, so every token counts once in the statistics.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tightfit.calib.tokenizer import completion_ids, prompt_ids
from tightfit.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EMBEDDED = Path(__file__).parent / "embedded" / "tiny-r1" / "calibration.jsonl"
MIN_SAMPLE_TOKENS = 2
"""A one-token sequence says nothing about attention."""
FORMS = (
    'a jsonl file with {"problem", "completion"}, {"messages"} or {"text"} on each line, '
    "or a txt file"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationOptions:
    """What was asked for; recorded in the manifest."""

    source: str = "embedded"
    """`embedded`, a file's path, or `self:n=N` (the model's own traces)."""
    samples: int = 128
    """Sequences at most."""
    max_tokens: int = 2048
    """Tokens of a sequence at most; longer ones are cut."""
    seed: int = 0
    """Seed of the choice among more sequences than asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSample:
    """One token sequence."""

    ids: tuple[int, ...]
    completion_start: int
    """Index of the first token that the model itself would write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSet:
    """The sequences used, and where they came from."""

    options: CalibrationOptions
    samples: tuple[CalibrationSample, ...]

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def sha256(self) -> str:
        """Hash of the token ids, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(len(sample.ids).to_bytes(8, "little"))
            digest.update(np.asarray(sample.ids, dtype="<i8").tobytes())
        return digest.hexdigest()


def load_calibration(
    tokenizer: "PreTrainedTokenizerFast", options: CalibrationOptions
) -> CalibrationSet:
    """Read, tokenize and choose the sequences of a file or of the embedded set."""
    path = EMBEDDED if options.source == "embedded" else Path(options.source)
    if not path.is_file():
        raise CalibrationError(
            f"there is no calibration file {str(path)!r}",
            allowed=f"`embedded`, `self:n=64`, {FORMS}",
            hint="check the path given to --calib",
        )
    if path.suffix not in (".jsonl", ".txt"):
        raise CalibrationError(
            f"calibration file {path.name!r} is of an unknown kind",
            allowed=f"allowed: {FORMS}",
            hint="rename or convert it",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"calibration file {path.name!r} is not UTF-8 text: {error}", hint="convert it to UTF-8"
        ) from error
    if path.suffix == ".jsonl":
        sequences = _read_jsonl(text, tokenizer, origin=path.name)
    else:
        sequences = _read_text(text, tokenizer, options.max_tokens)
    return choose_samples(sequences, options)


def choose_samples(
    sequences: Sequence[CalibrationSample], options: CalibrationOptions
) -> CalibrationSet:
    """Cut the sequences to length and draw the number asked for, in their original order."""
    usable = [
        CalibrationSample(
            ids=sample.ids[: options.max_tokens],
            completion_start=min(sample.completion_start, options.max_tokens),
        )
        for sample in sequences
        if len(sample.ids) >= MIN_SAMPLE_TOKENS
    ]
    if not usable:
        raise CalibrationError(
            f"calibration source {options.source!r} holds no usable sequence",
            allowed=f"at least one sequence of {MIN_SAMPLE_TOKENS} tokens or more",
            hint="give a file with more text",
        )
    if len(usable) > options.samples:
        kept = sorted(random.Random(options.seed).sample(range(len(usable)), options.samples))
        usable = [usable[index] for index in kept]
    return CalibrationSet(options=options, samples=tuple(usable))


def _read_jsonl(
    text: str, tokenizer: "PreTrainedTokenizerFast", *, origin: str
) -> list[CalibrationSample]:
    samples = []
    # Not `splitlines`, which also cuts at U+2028 and its like; JSON allows them inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CalibrationError(
                f"{origin}, line {number}: not valid JSON ({error.msg})",
                allowed=FORMS,
                hint="correct or delete the line",
            ) from error
        samples.append(_encode_record(record, tokenizer, where=f"{origin}, line {number}"))
    return samples


def _encode_record(
    record: Any, tokenizer: "PreTrainedTokenizerFast", *, where: str
) -> CalibrationSample:
    match record:
        case {"problem": str(problem), "completion": str(completion)}:
            prompt = prompt_ids(tokenizer, problem)
            ids = prompt + completion_ids(tokenizer, completion)
            return CalibrationSample(ids=tuple(ids), completion_start=len(prompt))
        case {"messages": list(messages)} if messages and all(map(_is_message, messages)):
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            assert isinstance(text, str)
            ids = list(tokenizer.encode(text, add_special_tokens=False))
            return CalibrationSample(ids=tuple(ids), completion_start=0)
        case {"text": str(text)}:
            return CalibrationSample(ids=tuple(tokenizer.encode(text)), completion_start=0)
        case _:
            given = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise CalibrationError(
                f"{where}: cannot use the fields {given}",
                allowed=FORMS,
                hint="all values are texts; a message has `role` and `content`",
            )


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False


def _read_text(
    text: str, tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> list[CalibrationSample]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [
        CalibrationSample(ids=tuple(ids[start : start + max_tokens]), completion_start=0)
        for start in range(0, len(ids), max_tokens)
    ]
