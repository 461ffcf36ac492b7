"""The small JSON files beside a checkpoint's weights."""

from pathlib import Path
from typing import Any

from tightfit.errors import CheckpointError
from tightfit.records import load_json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file does not exist; raises `CheckpointError`."""
    if not path.is_file():
        return {}
    try:
        values = load_json(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {error}", hint="download the file again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object", hint="download the file again")
    return values
