"""Safetensors headers that lie. Oracle: what passes here, the safetensors package reads alike."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from safetensors import safe_open
from safetensors.torch import save_file
from support.hostile import (
    FUZZ,
    MESSAGE_CHARACTERS,
    answer,
    damaged_bytes,
    damaged_json,
    time_limit,
)

from tightfit.calib.safetensors_header import read_header
from tightfit.errors import CheckpointError

MOST_BYTES = 5_000_000
DATA = bytes(range(24))
HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [16, 24]},
}


def write(path: Path, header: Any, data: bytes = DATA) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def check(file: Path) -> None:
    """Refused with our error, or read as the package reads it."""
    found = answer(lambda: read_header(file))
    if found is None:
        return
    with safe_open(file, framework="pt") as expected:
        assert sorted(found) == sorted(expected.keys())
        for name, stored in found.items():
            tensor = expected.get_tensor(name)
            assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert stored.nbytes == tensor.nbytes


def entry(**changes: Any) -> dict[str, Any]:
    return HEADER | {"a.weight": HEADER["a.weight"] | changes}


HUGE = 2**62
LIES: dict[str, tuple[Any, str]] = {
    "a name twice": (
        json.dumps({name: {"dtype": "U8", "shape": [24], "data_offsets": [0, 24]} for name in "ab"})
        .replace('"b"', '"a"')
        .encode(),
        "'a' is there twice",
    ),
    "an overlap": (entry(data_offsets=[8, 24]), "gap or an overlap at byte 0"),
    "the same bytes twice": (
        {name: HEADER["a.weight"] | {"shape": [6], "data_offsets": [0, 24]} for name in "ab"},
        "gap or an overlap at byte 24",
    ),
    "reversed offsets": (entry(data_offsets=[16, 0]), "spans -16 bytes"),
    "negative offsets": (entry(data_offsets=[-16, 0]), "malformed"),
    "offsets that are floats": (entry(data_offsets=[0.0, 16.0]), "malformed"),
    "offsets that are flags": (
        entry(shape=[1], dtype="U8", data_offsets=[False, True]),
        "malformed",
    ),
    "three offsets": (entry(data_offsets=[0, 8, 16]), "malformed"),
    "offsets beyond the file": (
        {"a": {"dtype": "U8", "shape": [HUGE], "data_offsets": [0, HUGE]}},
        "24 of 4611686018427387904 bytes",
    ),
    "sizes that are flags": (entry(shape=[True, 4]), "the shape"),
    "a negative size": (entry(shape=[-2, -2]), "the shape"),
    "a size that is a float": (entry(shape=[2.0, 2]), "the shape"),
    "a product that overflows to the right size": (entry(shape=[2**32, 2**32, 4]), "the shape"),
    "a product that overflows before a zero": (
        entry(shape=[HUGE, 8, 0], data_offsets=[0, 0]),
        "the shape",
    ),
    "a million dimensions": (entry(shape=[10**20] * 1_000_000), "the shape"),
    "a type of another size": (entry(dtype="F64"), "needs 32"),
    "an unknown type": (entry(dtype="F6_E3M2"), "stored as F6_E3M2"),
    "a type that is no word": (entry(dtype="x" * 10**6 + "\x1b"), "malformed"),
    "a name that clears the screen": (HEADER | {"\x1b[2J": HEADER["a.weight"]}, "malformed"),
    "a name of a megabyte": (HEADER | {"n" * 10**6: HEADER["a.weight"]}, "malformed"),
    "no name": (HEADER | {"": HEADER["a.weight"]}, "malformed"),
    "an entry that is none": (HEADER | {"c": 3}, "malformed"),
    "metadata that is nested": (HEADER | {"__metadata__": {"a": {}}}, "object of strings"),
    "metadata that is a list": (HEADER | {"__metadata__": []}, "object of strings"),
    "deep nesting": (b'{"a":' * 100_000, "nested deeper"),
    "not UTF-8": (b'{"\xff": 1}', "utf-8"),
    "a list": (b"[]", "not a JSON object"),
    "nothing": (b"", "not valid JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_has_its_own_sentence(lie: str, tmp_path: Path) -> None:
    header, sentence = LIES[lie]
    file = write(tmp_path / "model.safetensors", header)
    with time_limit(), pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert sentence in caught.value.problem
    assert len(str(caught.value)) < MESSAGE_CHARACTERS


@pytest.mark.parametrize("claim", [10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_claimed_length_takes_no_memory(claim: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", claim) + b"{}")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="its header"):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_the_whole_header_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", HEADER)
    assert read_header(file).keys() == {"a.weight", "b.weight"}
    check(file)


def test_tensors_without_values_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "empty": torch.ones(0, 4)}, file)
    assert read_header(file)["empty"].nbytes == 0
    check(file)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", HEADER)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(file)


@FUZZ
@given(header=damaged_json(HEADER))
def test_headers_with_values_exchanged(header: str, tmp_path: Path) -> None:
    check(write(tmp_path / "model.safetensors", header.encode()))


WHOLE = struct.pack("<Q", len(json.dumps(HEADER))) + json.dumps(HEADER).encode() + DATA


@FUZZ
@given(data=damaged_bytes(WHOLE))
def test_files_with_bytes_turned(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    check(file)
