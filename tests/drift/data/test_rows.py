"""Data files: four kinds that hold the same, and what is said of damaged ones."""

import csv
import json
import math

import pytest

from tightfit.drift.data.rows import read_rows
from tightfit.errors import DriftError, MissingPackageError, UsageError

ENTRIES = [
    {"problem": 'What, "exactly"?\u2028Say\nit.', "answer": "073", "unique_id": "a"},
    {"problem": "¿Qué? $\\frac{1}{2}$", "answer": "\\frac{1}{2}", "unique_id": "b"},
]


def write(path):
    """The entries by a writer that is not ours."""
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(each, ensure_ascii=False) for each in ENTRIES))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ENTRIES, indent=2))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ENTRIES[0])
            writer.writeheader()
            writer.writerows(ENTRIES)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ENTRIES), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "A.JSONL"])
def test_every_kind_of_file_holds_the_same(tmp_path, name):
    written = write(tmp_path / name.lower()).rename(tmp_path / name)
    assert [row.fields for row in read_rows(written)] == ENTRIES


def test_places_are_those_of_the_file(tmp_path):
    def places(name):
        return [row.where for row in read_rows(write(tmp_path / name))]

    assert places("a.jsonl") == ["line 1", "line 3"]
    assert places("a.json") == ["entry 1", "entry 2"]
    assert places("a.csv")[0] == "line 3"  # where it ends: the first problem has two lines
    assert places("a.parquet") == ["row 1", "row 2"]


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"answer": "1"}\r\n{"answer": "2"}\r\n')
    assert [row.fields["answer"] for row in read_rows(path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 1\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]", "line 1: an array, not an object"),
        ("a.jsonl", b"\n\nnull", "line 3: null, not an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"7" * 10_000, "line 1: not JSON"),
        ("a.jsonl", b'{"a": "\xe9"}', "byte 7: not UTF-8"),
        ("a.json", b'{"a": 1}\n{"a": 1}\n', "whole file: not JSON"),
        ("a.json", b'{"data": []}', "holds an object, not an array"),
        ("a.json", b'[{"a": 1}, "b"]', "entry 2: a string, not an object"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2: more or fewer values"),
        ("a.csv", b"a,b\n1,2\n1\n", "line 3: more or fewer values"),
        ("a.csv", b'a,b\n1,"2', "line 2: unexpected end"),
        ("a.parquet", b"PAR1 not really PAR1", "not a readable Parquet file"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DriftError) as caught:
        read_rows(path)
    assert f"{path}" in str(caught.value)
    assert says in str(caught.value)


def test_a_folder_named_like_a_file(tmp_path):
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(DriftError, match="cannot be read: Is a directory"):
        read_rows(folder)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
        read_rows(tmp_path / "a.xlsx")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("tightfit.drift.data.rows.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"tightfit\[drift\]"):
        read_rows(tmp_path / "a.parquet")


def test_json_beyond_the_standard_is_passed_on(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"answer": NaN}')
    assert math.isnan(read_rows(path)[0].fields["answer"])  # refused by the schema
