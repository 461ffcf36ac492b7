r"""From the rows of a data set to problems: which field means what.

| schema | fields | unique id | gold answer |
|---|---|---|---|
| AIME | id, problem, answer, year | `aime24/<id>` | as it stands |
| GSM8K | question, answer | `gsm8k/<index>` | behind the last `####`, no thousands commas |
| MATH | problem, answer | unique_id, or id, or `row/<index>` | as it stands |

Indices count rows from 0. `solution`, `subject` (or `type`) and `level` are taken where they are. A
data set that no registry entry describes has the first schema whose fields its first row holds;
every row must then hold them.

Levels are whole numbers from 1; the `Level 5` of the first MATH files (Hendrycks et al., 2021) is
read as 5, while its `Level ?` is refused: nobody knows which stratum it is.
Formats: GSM8K from Cobbe et al., 2021 (arXiv 2110.14168); MATH-500 from Lightman et al., 2023.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tightfit.drift.data.problem import Problem
from tightfit.drift.data.rows import Row
from tightfit.errors import DriftError

GOLD_MARK: Final = "####"
"""What precedes the answer in GSM8K."""
THOUSANDS_COMMA: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LEVEL: Final = re.compile(r"(?:Level )?([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """How the fields of a data set map to a problem's."""

    name: str
    required: tuple[str, ...]
    """Fields that every row must hold, and that tell this schema from the others."""
    convert: Callable[[Mapping[str, Any], int], Problem]
    """From a row's fields and its index from 0; raises `ValueError` with the reason."""


def problems_of(rows: Sequence[Row], *, origin: str, schema: Schema | None) -> list[Problem]:
    """The rows as problems; `schema` None: found by the first row's fields.

    Raises `DriftError`, which names `origin` and the row, for missing or unusable fields, for
    unique ids that occur twice, and where there is no row at all.
    """
    if not rows:
        raise DriftError(f"{origin}: holds no problem", allowed=_known_fields())
    schema = schema or _detect(rows[0], origin)
    seen: dict[str, str] = {}
    problems = []
    for index, row in enumerate(rows):
        try:
            problem = schema.convert(row.fields, index)
        except ValueError as error:
            raise DriftError(
                f"{origin}, {row.where}: {error}",
                allowed=f"rows of {schema.name} hold {', '.join(schema.required)}",
                hint="correct or remove that row",
            ) from error
        if problem.unique_id in seen:
            raise DriftError(
                f"{origin}, {row.where}: the id {problem.unique_id!r} is that of "
                f"{seen[problem.unique_id]} too",
                hint="remove the copy: a problem that counts twice makes intervals too narrow",
            )
        seen[problem.unique_id] = row.where
        problems.append(problem)
    return problems


def _detect(row: Row, origin: str) -> Schema:
    for schema in SCHEMAS:
        if all(name in row.fields for name in schema.required):
            return schema
    raise DriftError(
        f"{origin}, {row.where}: the fields {', '.join(map(str, row.fields)) or '(none)'} are not "
        "those of problems with answers",
        allowed=_known_fields(),
        hint="rename the fields in a local copy",
    )


def _known_fields() -> str:
    return "fields: " + "; or ".join(
        f"{', '.join(schema.required)} ({schema.name})" for schema in reversed(SCHEMAS)
    )


def _from_aime(fields: Mapping[str, Any], index: int) -> Problem:
    year = _text(fields, "year")
    return _from_math(fields, index, unique_id=f"aime{year[-2:]}/{_text(fields, 'id')}")


def _from_gsm8k(fields: Mapping[str, Any], index: int) -> Problem:
    solution, mark, gold = _text(fields, "answer").rpartition(GOLD_MARK)
    if not mark or not gold.strip():
        raise ValueError(f"answer does not end in {GOLD_MARK} and the gold answer")
    return Problem(
        unique_id=f"gsm8k/{index}",
        problem=_text(fields, "question"),
        answer=THOUSANDS_COMMA.sub("", gold.strip()),
        solution=solution.strip(),
        original=fields,
    )


def _from_math(fields: Mapping[str, Any], index: int, unique_id: str | None = None) -> Problem:
    named = next((name for name in ("unique_id", "id") if name in fields), None)
    return Problem(
        unique_id=unique_id or (_text(fields, named) if named else f"row/{index}"),
        problem=_text(fields, "problem"),
        answer=_text(fields, "answer"),
        solution=_optional(fields, "solution"),
        subject=_optional(fields, "subject") or _optional(fields, "type"),
        level=_level(fields.get("level")),
        original=fields,
    )


MATH: Final = Schema(name="MATH", required=("problem", "answer"), convert=_from_math)
GSM8K: Final = Schema(name="GSM8K", required=("question", "answer"), convert=_from_gsm8k)
AIME: Final = Schema(name="AIME", required=("id", "problem", "answer", "year"), convert=_from_aime)
SCHEMAS: Final = (AIME, GSM8K, MATH)
"""The most particular first."""


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A field as text that is not blank; numbers as Python writes them."""
    if name not in fields:
        raise ValueError(f"the field {name} is missing")
    value = fields[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (isinstance(value, str) or (number and math.isfinite(value))):
        raise ValueError(f"{name} is {value!r}, not text")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half a surrogate pair, which no tokenizer takes")
    return text


def _optional(fields: Mapping[str, Any], name: str) -> str:
    return "" if fields.get(name) in (None, "") else _text(fields, name)


def _level(value: Any) -> int | None:
    if value is None or value == "":
        return None
    found = None if isinstance(value, bool) else LEVEL.fullmatch(str(value))
    if found is None:
        raise ValueError(f"level is {value!r}, not a whole number from 1 (or `Level 1` and so on)")
    return int(found[1])
