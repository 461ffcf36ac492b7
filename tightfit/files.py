"""Files that are whole or absent.

Everything long-lived is written beside its place, flushed to disk, and renamed into it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tightfit.errors import ArtifactError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well and vanishes otherwise.

    Raises `ArtifactError` when the disk is full or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise ArtifactError(
            f"cannot write {path}: {error}",
            hint="free some space or choose another folder with -o; finished work is kept, and "
            "the same command continues from it",
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
