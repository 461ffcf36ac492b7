"""The journal of an unfinished file: what it takes for whole, and what it forgets."""

import hashlib
import io
from pathlib import Path

import pytest

from tightfit.export.gguf.written import Written, WrittenTensor

DATA = b"0123456789" * 1000


def tensor(name: str, data: bytes = DATA) -> WrittenTensor:
    return WrittenTensor(
        name=name, data_sha256=hashlib.sha256(data).hexdigest(), values_sha256="ab" * 32
    )


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    written = Written(tmp_path / "written.jsonl")
    for name in ("first", "second"):
        written.add(tensor(name))
    return tmp_path / "written.jsonl"


def holds(written: Written, name: str, content: bytes, start: int = 0) -> bool:
    return written.holds(name, io.BytesIO(content), start, len(DATA))


def test_what_is_whole_is_known_again(journal: Path) -> None:
    written = Written(journal)
    assert holds(written, "first", DATA)
    assert holds(written, "second", b"head" + DATA, start=4)
    assert written.values_sha256("second") == "ab" * 32
    assert not holds(written, "third", DATA)


@pytest.mark.parametrize("content", [DATA[:-1], b"x" + DATA[1:], DATA[:-1] + b"x", b""])
def test_what_the_disk_damaged_is_forgotten(journal: Path, content: bytes) -> None:
    written = Written(journal)
    assert not holds(written, "first", content)
    assert not holds(written, "first", DATA), "it is made again, whatever lies there later"
    written.add(tensor("first"))
    assert holds(Written(journal), "first", DATA)


def test_a_line_that_a_kill_cut_short_is_no_tensor_and_ends_nothing(journal: Path) -> None:
    whole = journal.read_bytes()
    for cut in range(1, 60):
        journal.write_bytes(whole[:-cut])
        written = Written(journal)
        assert holds(written, "first", DATA)
        assert not holds(written, "second", DATA)
        written.add(tensor("third"))
        assert holds(Written(journal), "third", DATA)


def test_without_a_journal_nothing_is_kept(tmp_path: Path) -> None:
    written = Written()
    written.add(tensor("first"))
    assert holds(written, "first", DATA)
    assert list(tmp_path.iterdir()) == []
