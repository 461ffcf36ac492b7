"""Files that are whole or absent.

Everything long-lived is written beside its place, flushed to disk, and renamed into it.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from tightfit.errors import ArtifactError

Progress = Callable[[str, int, int], None]
"""Called after each tensor with its name, the bytes written so far and the bytes in all."""


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


def refuse_existing(old: Sequence[Path], *, overwrite: bool) -> None:
    """Raise `ArtifactError` when a result is in the way and may not be replaced."""
    if old and not overwrite:
        raise ArtifactError(
            f"{old[0]} exists already",
            allowed="a result is never replaced unasked",
            hint="add --overwrite, or choose another folder with -o",
        )


@contextlib.contextmanager
def partial_folder(path: Path, *, needed_bytes: int) -> Iterator[Path]:
    """A hidden folder beside `path` to write in, gone afterwards, however the block ends.

    Raises `ArtifactError` when the disk lacks `needed_bytes` or fills up, or cannot be written.
    """
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    try:
        with _writing(folder, path, needed_bytes, "nothing was left behind"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def kept_folder(folder: Path, path: Path, *, needed_bytes: int) -> Iterator[Path]:
    """`folder` to write `path` in, gone when the block ends well; otherwise it waits for a rerun.

    Raises as `partial_folder`; what the folder holds already is part of `needed_bytes`.
    """
    held_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with _writing(folder, path, needed_bytes - held_bytes, "the same command goes on from there"):
        yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def _writing(folder: Path, path: Path, needed_bytes: int, afterwards: str) -> Iterator[None]:
    """Create the folder, and say plainly why the disk refuses."""
    _check_room(path, needed_bytes)
    try:
        folder.mkdir(exist_ok=True)
        yield
    except OSError as error:
        # "requested and": numpy's short write.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)
        problem = (
            f"the disk is full: {path} was not written"
            if full
            else f"{path} cannot be written: {error}"
        )
        raise ArtifactError(
            problem, hint=f"free some space or choose another folder with -o; {afterwards}"
        ) from error


def move_into_place(
    names: Sequence[str], source: Path, target: Path, old: Sequence[Path]
) -> tuple[Path, ...]:
    """Rename all files or none; the first, which readers are given, comes last.

    Of an `old` result, what has no successor is removed, and of several files the first too: a
    reader must never find it beside parts of another result.
    """
    for path in old:
        if path.name not in names or (path.name == names[0] and len(names) > 1):
            path.unlink()
    moved: list[Path] = []
    try:
        for name in reversed(names):
            (source / name).replace(target / name)
            moved.append(target / name)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return tuple(target / name for name in names)


def _check_room(path: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(path.parent).free
    if needed_bytes > free_bytes:
        raise ArtifactError(
            f"{path.name} needs {needed_bytes / 2**30:.2f} GiB and {path.parent} has "
            f"{free_bytes / 2**30:.2f} GiB free",
            hint="free some space or choose another folder with -o",
        )
