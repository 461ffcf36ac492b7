"""What is written is what `gguf.GGUFReader` reads, and nothing half-written stays."""

import errno
import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import f32, flag, i32s, text, texts, u32
from tightfit.export.gguf.writer import GgufTensor, Piece, write_gguf
from tightfit.targets.schemes.ggml_types import row_bytes

METADATA = (
    text("general.architecture", "qwen2"),
    text("general.name", "größe"),
    u32("qwen2.block_count", 3),
    f32("qwen2.rope.freq_base", 1e6),
    flag("tokenizer.ggml.add_bos_token", True),
    texts("tokenizer.ggml.tokens", ["a", "Ġb", "<｜x｜>"]),
    i32s("tokenizer.ggml.token_type", [1, 1, 3]),
)


def tensor(name: str, kind: Type, shape: tuple[int, ...], seed: int = 0) -> GgufTensor:
    values = np.random.default_rng(seed)
    data: np.ndarray
    if kind is Type.F32:
        data = values.standard_normal(shape, dtype=np.float32)
    elif kind is Type.F16:
        data = values.standard_normal(shape).astype(np.float16)
    else:
        stored = (*shape[:-1], row_bytes(kind, shape[-1]))
        data = values.integers(0, 256, stored, dtype=np.uint8)
    return GgufTensor(name=name, shape=shape, ggml_type=kind, loads=[lambda: Piece(data)])


@pytest.fixture
def tensors() -> list[GgufTensor]:
    kinds = [
        Type.F16,
        Type.BF16,
        Type.Q4_0,
        Type.Q8_0,
        Type.Q4_K,
        Type.Q6_K,
        Type.IQ4_XS,
        Type.Q2_K,
    ]
    parts = [tensor(f"blk.{i}.w.weight", kind, (6, 512), i) for i, kind in enumerate(kinds)]
    odd = [tensor("blk.0.n.weight", Type.F32, (7,)), tensor("e.weight", Type.Q5_1, (3, 5, 32))]
    return [*parts, *odd]


def assert_same(read: list[gguf.ReaderTensor], written: list[GgufTensor]) -> None:
    assert [part.name for part in read] == [part.name for part in written]
    for found, expected in zip(read, written, strict=True):
        assert found.tensor_type is expected.ggml_type
        assert tuple(reversed(found.shape.tolist())) == expected.shape
        assert found.data.tobytes() == b"".join(load().data.tobytes() for load in expected.loads)


def test_every_byte_is_read_back(tmp_path: Path, tensors: list[GgufTensor]) -> None:
    seen = []
    files = write_gguf(
        tmp_path / "new" / "m.gguf",
        metadata=METADATA,
        tensors=tensors,
        progress=lambda name, done, total: seen.append((name, done, total)),
    )
    assert files == (tmp_path / "new" / "m.gguf",)
    reader = gguf.GGUFReader(files[0])
    assert_same(reader.tensors, tensors)
    found = {key: field.contents() for key, field in reader.fields.items()}
    for entry in METADATA:
        assert found[entry.key] == entry.value, entry.key
    assert [key for key in found if not key.startswith("GGUF.")] == [e.key for e in METADATA]
    assert [name for name, _, _ in seen] == [part.name for part in tensors]
    assert (
        seen[-1][1]
        == seen[-1][2]
        == sum(load().data.nbytes for part in tensors for load in part.loads)
    )
    assert list(files[0].parent.iterdir()) == list(files)


def test_equal_input_gives_equal_bytes(tmp_path: Path, tensors: list[GgufTensor]) -> None:
    names = ("a.gguf", "b.gguf")
    for name in names:
        write_gguf(tmp_path / name, metadata=METADATA, tensors=tensors)
    hashes = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    assert len(hashes) == 1


def test_files_are_split_as_llama_cpp_names_them(tmp_path: Path, tensors: list[GgufTensor]) -> None:
    limit = 6000
    files = write_gguf(
        tmp_path / "m.gguf", metadata=METADATA, tensors=tensors, split_max_bytes=limit
    )
    count = len(files)
    assert count > 2
    assert files[1].name == f"m-00002-of-{count:05d}.gguf"
    assert sorted(tmp_path.iterdir()) == list(files)
    readers = [gguf.GGUFReader(file) for file in files]
    assert_same([part for reader in readers for part in reader.tensors], tensors)
    for number, reader in enumerate(readers):
        keys = ("split.no", "split.count", "split.tensors.count")
        assert [reader.fields[key].contents() for key in keys] == [number, count, len(tensors)]
        sizes = [part.n_bytes for part in reader.tensors]
        assert sum(sizes) <= limit or len(sizes) == 1
    assert "general.name" in readers[0].fields


@pytest.mark.parametrize(("first", "second"), [(None, None), (None, 6000), (6000, None)])
def test_a_result_is_replaced_only_when_asked(
    first: int | None, second: int | None, tmp_path: Path, tensors: list[GgufTensor]
) -> None:
    path = tmp_path / "m.gguf"
    old = write_gguf(path, metadata=METADATA, tensors=tensors, split_max_bytes=first)
    before = [file.read_bytes() for file in old]
    with pytest.raises(ArtifactError, match="exists already") as caught:
        write_gguf(path, metadata=METADATA, tensors=tensors[:3], split_max_bytes=second)
    assert "--overwrite" in caught.value.hint
    assert [file.read_bytes() for file in old] == before
    new = write_gguf(
        path, metadata=METADATA, tensors=tensors[:-1], split_max_bytes=second, overwrite=True
    )
    assert sorted(tmp_path.iterdir()) == sorted(new), "no file of the old result is left"


class Broken:
    """Loads fail after the first."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> np.ndarray:
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ArtifactError),
        (OSError("4096 requested and 12 written"), ArtifactError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_nothing_is_left_of_a_failure(
    error: BaseException, raised: type[BaseException], tmp_path: Path, tensors: list[GgufTensor]
) -> None:
    path = tmp_path / "m.gguf"
    bad = GgufTensor(name="bad", shape=(4,), ggml_type=Type.F32, loads=[Broken(error)])
    with pytest.raises(raised) as caught:
        write_gguf(path, metadata=METADATA, tensors=[*tensors, bad], split_max_bytes=6000)
    assert list(tmp_path.iterdir()) == []
    if raised is ArtifactError:
        assert "the disk is full" in str(caught.value)
    write_gguf(path, metadata=METADATA, tensors=tensors)
    with pytest.raises(raised):
        write_gguf(path, metadata=METADATA, tensors=[*tensors, bad], overwrite=True)
    assert list(tmp_path.iterdir()) == [path], "the old result outlives a failed replacement"
    assert_same(gguf.GGUFReader(path).tensors, tensors)


def test_a_failed_rename_takes_the_others_back(
    tmp_path: Path, tensors: list[GgufTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.replace, []

    def fail_third(source: Path, target: Path) -> Path:
        calls.append(target.name)
        if len(calls) == 3:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fail_third)
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=tensors, split_max_bytes=6000)
    assert list(tmp_path.iterdir()) == []
    assert calls == sorted(calls, reverse=True), "the first file, which readers open, comes last"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, tensors: list[GgufTensor]) -> None:
    stale = tmp_path / ".m.gguf.partial"
    stale.mkdir()
    (stale / "m.gguf").write_bytes(b"half")
    write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_room_is_asked_for_first(
    tmp_path: Path, tensors: list[GgufTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**29))
    big = GgufTensor(
        name="big", shape=(2**20, 256), ggml_type=Type.F32, loads=[Broken(AssertionError())]
    )
    with pytest.raises(ArtifactError, match=r"needs 1\.00 GiB .* has 0\.50 GiB free"):
        write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[big])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((4, 143), np.uint8),
        np.zeros((3, 144), np.uint8),
        np.zeros((4, 144), np.int8),
        np.zeros((4, 256), np.float32),
    ],
)
def test_data_must_fit_type_and_shape(data: np.ndarray, tmp_path: Path) -> None:
    wrong = GgufTensor(
        name="blk.0.w", shape=(4, 256), ggml_type=Type.Q4_K, loads=[lambda: Piece(data)]
    )
    with pytest.raises(ArtifactError, match=r"blk\.0\.w came as") as caught:
        write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[wrong])
    assert "uint8 (4, 144)" in caught.value.allowed
    assert list(tmp_path.iterdir()) == []


def test_rows_in_another_memory_order_are_written_in_theirs(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    columns = np.asfortranarray(data)
    part = GgufTensor(name="w", shape=(3, 4), ggml_type=Type.F32, loads=[lambda: Piece(columns)])
    (path,) = write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[part])
    np.testing.assert_array_equal(gguf.GGUFReader(path).tensors[0].data, data)
