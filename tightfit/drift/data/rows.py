"""Rows of a data file: JSON lines, a JSON array, CSV or Parquet, by the name's ending.

A row is a mapping from field to value, with the place where it stands, so that every error can
name it. CSV values stay text as written: no guessing that turns the answer `073` into 73.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tightfit.errors import DriftError, MissingPackageError, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a data set."""

    where: str
    """Where it stands: `line 3`, `entry 3` or `row 3`, counted from 1."""
    fields: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file.

    Raises `UsageError` for another kind of file, `DriftError` (with the line) for a damaged one,
    and `MissingPackageError` for Parquet without pyarrow.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UsageError(
            f"{path}: problems are not read from {path.suffix or 'a file without an ending'}",
            allowed=f"files ending in {', '.join(READERS)}",
            hint="save it as JSON lines, one problem a line",
        )
    return read(path)


def _json_lines(path: Path) -> list[Row]:
    # Not splitlines: problems may hold U+2028, which ends no line of JSON.
    lines = enumerate(_text(path).split("\n"), 1)
    return [
        _row(path, f"line {number}", _parsed(path, f"line {number}", line))
        for number, line in lines
        if line.strip()
    ]


def _json_array(path: Path) -> list[Row]:
    entries = _parsed(path, "whole file", _text(path))
    if not isinstance(entries, list):
        raise DriftError(
            f"{path}: holds {_kind(entries)}, not an array",
            allowed="a JSON array of objects, one for each problem",
            hint="a file with one object a line ends in .jsonl",
        )
    return [_row(path, f"entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _csv(path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        for fields in reader:
            where = f"line {reader.line_num}"
            if None in fields or None in fields.values():
                raise DriftError(
                    f"{path}, {where}: more or fewer values than the first line has names",
                    hint='quote values that hold a comma, and write " within them twice',
                )
            rows.append(_row(path, where, fields))
    except csv.Error as error:
        # Of the reader within: DictReader's own number is that of the last whole row.
        raise DriftError(f"{path}, line {reader.reader.line_num}: {error}") from error
    return rows


def _parquet(path: Path) -> list[Row]:
    if find_spec("pyarrow") is None:
        raise MissingPackageError(
            f"{path}: reading Parquet needs the package pyarrow, which is not installed",
            hint="install it: pip install 'tightfit[drift]', or save the file as JSON lines",
        )
    import pyarrow
    from pyarrow import parquet

    try:
        entries = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DriftError(f"{path}: not a readable Parquet file: {error}") from error
    return [_row(path, f"row {number}", entry) for number, entry in enumerate(entries, 1)]


READERS: Final[Mapping[str, Callable[[Path], list[Row]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _text(path: Path) -> str:
    try:
        # The signature that Windows editors put first is no part of the data.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DriftError(
            f"{path}, byte {error.start}: not UTF-8", hint="save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DriftError(f"{path}: cannot be read: {error.strerror}") from error


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    # An integer of thousands of digits is a ValueError too; deep nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        raise DriftError(
            f"{path}, {where}: not JSON: {error}",
            allowed="JSON lines (.jsonl: one object a line) or a JSON array of objects (.json)",
            hint="the file may be cut off or edited by hand",
        ) from error


def _row(path: Path, where: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise DriftError(
            f"{path}, {where}: {_kind(fields)}, not an object",
            allowed="one JSON object for each problem",
        )
    return Row(where=where, fields=fields)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")
