"""What is written of an unfinished GGUF: the tensors that are whole, and the values they hold.

Kept in a file beside the unfinished ones, one line of JSON a tensor, an interrupted export goes on
behind the last whole tensor. A line has the SHA-256 of the tensor's stored bytes, so that what a
power cut or a failing disk damaged is made again.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tightfit.records import build, parse_json

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenTensor:
    """A tensor that is whole."""

    name: str
    data_sha256: str
    """Of its stored bytes."""
    values_sha256: str
    """Of the float32 values that a reader must get."""


class Written:
    """The whole tensors by name."""

    def __init__(self, journal: Path | None = None) -> None:
        """Read the journal where there is one; None: nothing is kept."""
        self._journal = journal
        self._tensors: dict[str, WrittenTensor] = {}
        if journal is not None and journal.exists():
            self._tensors = {tensor.name: tensor for tensor in _read(journal)}

    def values_sha256(self, name: str) -> str:
        """Of a whole tensor, the digest of the values that a reader must get."""
        return self._tensors[name].values_sha256

    def holds(self, name: str, file: BinaryIO, start: int, size_bytes: int) -> bool:
        """Whether the tensor is whole, by its bytes in the file; otherwise it is forgotten."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return False
        file.seek(start)
        digest = hashlib.sha256()
        left = size_bytes
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        if left == 0 and digest.hexdigest() == tensor.data_sha256:
            return True
        del self._tensors[name]
        return False

    def add(self, tensor: WrittenTensor) -> None:
        """A tensor is whole."""
        self._tensors[tensor.name] = tensor
        if self._journal is not None:
            with self._journal.open("a", encoding="utf-8") as file:
                # The line break first: it ends a line that a kill cut short.
                file.write("\n" + json.dumps(asdict(tensor)))


def _read(journal: Path) -> list[WrittenTensor]:
    """The lines; one that a kill cut short counts as never written."""
    tensors = []
    for line in journal.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, TypeError):
            tensors.append(build(WrittenTensor, parse_json(line)))
    return tensors
