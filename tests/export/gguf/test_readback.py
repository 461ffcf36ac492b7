"""Reading a model back, whole and damaged."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Kind

from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import Entry, i32s, text, texts, u32
from tightfit.export.gguf.readback import describe, read_tensors
from tightfit.export.gguf.reader import ArrayReader
from tightfit.export.gguf.writer import GgufTensor, Piece, write_gguf

KINDS = {"a.weight": Type.F32, "b.weight": Type.Q8_0, "c.weight": Type.Q4_0, "d.weight": Type.BF16}
SHAPE = (5, 64)
METADATA = (
    text("general.architecture", "qwen2"),
    u32("general.file_type", 7),
    texts("tokenizer.ggml.tokens", [f"t{i}" for i in range(9)]),
    i32s("tokenizer.ggml.token_type", range(3)),
)


def values(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name[0])).standard_normal(SHAPE, dtype=np.float32)


def write(folder: Path, split_max_bytes: int | None = None) -> tuple[Path, ...]:
    def part(name: str, kind: Type) -> GgufTensor:
        stored = gguf.quants.quantize(values(name), kind)
        return GgufTensor(name=name, shape=SHAPE, ggml_type=kind, loads=[lambda: Piece(stored)])

    tensors = [part(name, kind) for name, kind in KINDS.items()]
    path = folder / "m.gguf"
    return write_gguf(path, metadata=METADATA, tensors=tensors, split_max_bytes=split_max_bytes)


@pytest.mark.parametrize("split_max_bytes", [None, 1000])
def test_tensors_from_any_of_the_files(split_max_bytes: int | None, tmp_path: Path) -> None:
    files = write(tmp_path, split_max_bytes)
    assert (len(files) > 1) == (split_max_bytes is not None)
    found = list(read_tensors(files[-1]))
    assert {part.name: part.ggml_type for part in found} == KINDS
    for part in found:
        stored = gguf.quants.quantize(values(part.name), part.ggml_type)
        assert part.shape == SHAPE
        assert part.raw.shape[0] == SHAPE[0]
        assert part.raw.tobytes() == stored.tobytes()
        expected = gguf.quants.dequantize(stored, part.ggml_type)
        np.testing.assert_array_equal(part.values(), expected)
        assert part.values().shape == SHAPE


@pytest.mark.parametrize("split_max_bytes", [None, 1000])
def test_description(split_max_bytes: int | None, tmp_path: Path) -> None:
    files = write(tmp_path, split_max_bytes)
    seen = describe(files[0])
    assert seen.files == files
    assert seen.metadata["tokenizer.ggml.tokens"] == "[9 items: t0, t1, t2, t3, ...]"
    assert seen.metadata["tokenizer.ggml.token_type"] == "[3 items: 0, 1, 2]"
    assert seen.metadata["general.file_type"] == 7
    assert [part.ggml_type for part in seen.tensors] == ["F32", "Q8_0", "Q4_0", "BF16"]
    assert seen.size_bytes == 5 * (64 * 4 + 68 + 36 + 128)


def test_arrays_are_those_of_the_packages_reader(tmp_path: Path) -> None:
    metadata = [
        text("general.architecture", "qwen2"),
        texts("strings", ["", "größe", "<｜x｜>", "a" * 300]),
        i32s("numbers", [3, -1, 2**31 - 1]),
        Entry(key="floats", value=[0.5, -2.0], type=Kind.ARRAY, item_type=Kind.FLOAT64),
        Entry(key="flags", value=[True, False], type=Kind.ARRAY, item_type=Kind.BOOL),
        u32("last", 5),
    ]
    zeros = np.zeros(3, np.float32)
    part = GgufTensor(name="w", shape=(3,), ggml_type=Type.F32, loads=[lambda: Piece(zeros)])
    (path,) = write_gguf(tmp_path / "m.gguf", metadata=metadata, tensors=[part])
    expected = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    found = {key: field.contents() for key, field in ArrayReader(path).fields.items()}
    assert found == expected


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    whole = path.read_bytes()
    padding = 32  # zeros after the last tensor
    for size in [*range(0, len(whole) - padding, 37), len(whole) - padding - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="not a whole GGUF"):
            list(read_tensors(path))


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04" * 40, b"GGUF" + b"\xff" * 200])
def test_other_files_are_refused(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(junk)
    with pytest.raises(ArtifactError, match=r"m\.gguf is not a whole GGUF file"):
        describe(path)


def test_missing_and_mixed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        describe(tmp_path / "none.gguf")
    files = write(tmp_path, 1000)
    renamed = files[0].rename(tmp_path / "only.gguf")
    with pytest.raises(ArtifactError, match="says that it is one of"):
        describe(renamed)
    with pytest.raises(ArtifactError, match="does not exist"):
        describe(files[1])
