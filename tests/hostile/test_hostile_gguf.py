"""GGUF files made to do harm. Oracle: what passes here, the gguf package reads alike."""

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Kind
from hypothesis import given
from support.hostile import FUZZ, MESSAGE_CHARACTERS, answer, damaged_bytes, time_limit

from tightfit.calib.gguf_header import check_gguf
from tightfit.calib.imatrix_file import open_imatrix_file
from tightfit.errors import ArtifactError, CalibrationError
from tightfit.export.gguf.entry import Entry, i32s, text, texts, u32
from tightfit.export.gguf.readback import describe, read_tensors
from tightfit.export.gguf.writer import GgufTensor, Piece, write_gguf

MOST_BYTES = 5_000_000
METADATA = (
    text("general.architecture", "qwen2"),
    u32("general.alignment", 32),
    texts("tokenizer.ggml.tokens", ["a", "größe", ""]),
    i32s("tokenizer.ggml.token_type", range(3)),
    Entry(key="some.flag", value=True, type=Kind.BOOL),
)


def write_model(folder: Path, *, split_max_bytes: int | None = None) -> tuple[Path, ...]:
    values = np.random.default_rng(0).standard_normal((2, 32), dtype=np.float32)
    tensors = []
    for name, kind in {"a": Type.F32, "b": Type.Q8_0, "c": Type.BF16}.items():
        stored = gguf.quants.quantize(values, kind)
        tensors.append(
            GgufTensor(
                name=name, shape=(2, 32), ggml_type=kind, loads=[lambda data=stored: Piece(data)]
            )
        )
    return write_gguf(
        folder / "m.gguf", metadata=METADATA, tensors=tensors, split_max_bytes=split_max_bytes
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("gguf"))[0].read_bytes()


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("w.in_sum2", np.ones((1, 8), np.float32))
    writer.add_tensor("w.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def check_model(path: Path) -> None:
    """Refused with our error, or read as the package reads it."""
    read = answer(lambda: (describe(path), {of.name: of.values() for of in read_tensors(path)}))
    if read is None:
        return
    described, found = read
    expected = gguf.GGUFReader(path)
    assert [tensor.name for tensor in described.tensors] == [of.name for of in expected.tensors]
    assert len(described.metadata) == len(expected.fields) - 3  # version and two counts
    for tensor in expected.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found[tensor.name], values)
        assert tensor.data_offset + tensor.n_bytes <= path.stat().st_size


# --- files by hand -------------------------------------------------------------------------------

F32 = struct.pack("<I", Type.F32)
ALIGNED = b"\0" * 64


def string(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: bytes, dims: list[int], offset: int = 0, kind: int = Type.F32) -> bytes:
    return (
        string(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def model(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    data: bytes = b"\0" * 256,
) -> bytes:
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join((*keys, *tensors))
    return head + b"\0" * (-len(head) % 32) + data


NESTED = b"".join(array(Kind.ARRAY, 1) for _ in range(50_000))
U32_VALUE = struct.pack("<I", 1)
LIES: dict[str, tuple[bytes, str]] = {
    "2^63 keys": (model(counts=(0, 2**63)), f"0 tensors and {2**63} keys"),
    "2^63 tensors": (model(counts=(2**63, 0)), f"{2**63} tensors and 0 keys"),
    "a million keys of nothing": (model(counts=(0, 1 << 16), data=b"\0" * 10**7), "'' is no name"),
    "a string beyond the file": (model([string(b"a", 2**62)]), "go beyond its end"),
    "a string of -1": (model([string(b"a", 2**64 - 1)]), "go beyond its end"),
    "2^60 bytes": (model([key(b"a", Kind.ARRAY, array(Kind.UINT8, 2**60))]), "2**60 items"),
    "2^60 strings": (model([key(b"a", Kind.ARRAY, array(Kind.STRING, 2**60))]), "2**60 items"),
    "5 million numbers that are not there": (
        model([key(b"a", Kind.ARRAY, array(Kind.INT64, 5_000_000))]),
        "go beyond its end",
    ),
    "arrays nested deep": (model([key(b"a", Kind.ARRAY, NESTED)]), "unknown type 9"),
    "an unknown type of value": (model([key(b"a", 13, b"")]), "unknown type 13"),
    "an unknown type of item": (model([key(b"a", Kind.ARRAY, array(77, 1))]), "unknown type 77"),
    "a key twice": (model([key(b"a", Kind.UINT32, U32_VALUE)] * 2), "the key 'a' is there twice"),
    "a key that clears the screen": (model([key(b"\x1b[2J", 4, U32_VALUE)]), "is no name"),
    "a value that is not UTF-8": (model([key(b"a", Kind.STRING, string(b"\xff"))]), "utf-8"),
    "alignment 0": (model([key(b"general.alignment", 4, b"\0" * 4)]), "no power of two"),
    "alignment 24": (
        model([key(b"general.alignment", 4, struct.pack("<I", 24))]),
        "no power of two",
    ),
    "alignment of a string": (
        model([key(b"general.alignment", Kind.STRING, string(b"32"))]),
        "no power of two",
    ),
    "alignment beyond the file": (
        model([key(b"general.alignment", 4, struct.pack("<I", 2**31))], [tensor(b"a", [4])]),
        "'a' goes beyond its end",
    ),
    "a tensor twice": (model([], [tensor(b"a", [4]), tensor(b"a", [4], 32)]), "'a' is there twice"),
    "tensors that overlap": (model([], [tensor(b"a", [16]), tensor(b"b", [4], 32)]), "ends at 64"),
    "tensors in one place": (model([], [tensor(b"a", [4]), tensor(b"b", [4])]), "ends at 32"),
    "a tensor that is not aligned": (model([], [tensor(b"a", [4], 4)]), "begins at byte 4"),
    "a tensor far behind": (model([], [tensor(b"a", [4], 2**62)]), "begins at byte"),
    "a tensor beyond the file": (model([], [tensor(b"a", [4096])]), "'a' goes beyond its end"),
    "a product that overflows to 0": (model([], [tensor(b"a", [2**32, 2**32])]), "beyond its end"),
    "2^31 dimensions": (
        model([], [string(b"a") + struct.pack("<I", 2**31)]),
        "2147483648 dimensions",
    ),
    "no dimensions": (model([], [tensor(b"a", [])]), "0 dimensions"),
    "a dimension of 0": (model([], [tensor(b"a", [4, 0])]), "the shape"),
    "half a block": (model([], [tensor(b"a", [16], kind=Type.Q8_0)]), "in blocks of 32"),
    "an unknown ggml type": (model([], [tensor(b"a", [4], kind=4)]), "unknown type 4"),
    "a type that no weights have": (
        model([], [tensor(b"a", [256], kind=Type.Q8_K)], data=b"\0" * 512),
        "stored as Q8_K",
    ),
    "another version": (model(version=1), "version 1"),
    "the other byte order": (model(version=3 << 24), "other byte order"),
    "another file": (b"PK\x03\x04" * 40, "does not begin with GGUF"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_has_its_own_sentence(lie: str, tmp_path: Path) -> None:
    data, sentence = LIES[lie]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with time_limit(), pytest.raises(ArtifactError) as caught:
            [of.values() for of in read_tensors(path)]
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert sentence.replace("2**60", str(2**60)) in caught.value.problem
    assert len(str(caught.value)) < MESSAGE_CHARACTERS


def test_a_million_tensors_of_nothing_end_at_the_first(tmp_path: Path) -> None:
    """The package lists 24 zero bytes as a tensor, and looks for doubles only afterwards."""
    path = tmp_path / "m.gguf"
    path.write_bytes(model(counts=(1 << 20, 0), data=b"\0" * (24 << 20)))
    with time_limit(), pytest.raises(ArtifactError, match="'' is no name"):
        describe(path)


@pytest.mark.parametrize("lie", sorted(LIES.keys() - {"a type that no weights have"}))
def test_an_importance_matrix_is_held_to_the_same(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(LIES[lie][0])
    with time_limit(), pytest.raises(CalibrationError):
        open_imatrix_file(path)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (key(b"imatrix.datasets", Kind.UINT32, U32_VALUE), "imatrix.datasets is 1"),
        (key(b"imatrix.datasets", Kind.ARRAY, array(4, 1, U32_VALUE)), "imatrix.datasets is [1]"),
        (key(b"imatrix.chunk_count", Kind.STRING, string(b"x")), "imatrix.chunk_count is 'x'"),
        (key(b"imatrix.chunk_size", Kind.INT32, b"\xff" * 4), "imatrix.chunk_size is -1"),
    ],
    ids=["a number", "an array of numbers", "a string", "a negative number"],
)
def test_values_of_the_wrong_type(entry: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(model([key(b"general.type", Kind.STRING, string(b"imatrix")), entry]))
    with pytest.raises(CalibrationError) as caught:
        open_imatrix_file(path)
    assert sentence in caught.value.problem


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00009-of-00003.gguf"])
def test_names_of_impossible_splits(name: str, tmp_path: Path) -> None:
    (path,) = write_model(tmp_path)
    renamed = path.rename(tmp_path / name)
    check_model(renamed)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    files = write_model(tmp_path, split_max_bytes=300)
    assert len(files) == 2
    second = files[1].read_bytes()
    files[1].write_bytes(second.replace(string(b"c"), string(b"a")))
    with pytest.raises(ArtifactError, match="2 tensors of 3"):
        describe(files[0])


def test_split_numbers_of_the_wrong_type(tmp_path: Path) -> None:
    files = write_model(tmp_path, split_max_bytes=300)
    first = files[0].read_bytes()
    for name, kind in ((b"split.count", Kind.UINT16), (b"split.tensors.count", Kind.INT32)):
        place = string(name) + struct.pack("<I", kind)
        assert place in first
        swapped = string(name) + struct.pack(
            "<I", Kind.FLOAT32 if kind == Kind.INT32 else Kind.INT16
        )
        files[0].write_bytes(first.replace(place, swapped))
        answer(lambda: describe(files[0]))
        files[0].write_bytes(first.replace(string(name), string(name[:-1] + b"x")))
        answer(lambda: describe(files[0]))


def test_every_cut_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    padding = 32  # behind the last tensor, which ends at a multiple of 32
    for size in range(len(whole) - padding):
        path.write_bytes(whole[:size])
        with time_limit(), pytest.raises(ValueError, match=r"cut|begin|empty|utf-8"):
            check_gguf(path)


def test_models_with_bytes_turned(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    head = len(whole) - 500  # most of the change where counts and lengths are

    @FUZZ
    @given(data=damaged_bytes(whole, within=head))
    def fuzz(data: bytes) -> None:
        path.write_bytes(data)
        check_model(path)

    fuzz()


def test_importance_matrices_with_bytes_turned(imatrix: bytes, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(imatrix)
    assert open_imatrix_file(path).n_chunks == 3

    @FUZZ
    @given(data=damaged_bytes(imatrix))
    def fuzz(data: bytes) -> None:
        path.write_bytes(data)
        found = answer(lambda: open_imatrix_file(path))
        if found is None:
            return
        assert found.sums.keys() == found.counts.keys()
        for row in (*found.sums.values(), *found.counts.values()):
            assert row.offset_bytes + row.values.nbytes <= len(data)

    fuzz()
