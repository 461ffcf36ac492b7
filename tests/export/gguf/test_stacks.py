"""Stacks of matrices: one in memory at a time, and the same bytes as the whole tensor."""

import dataclasses
import functools
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tightfit.errors import ArtifactError
from tightfit.export.gguf.entry import text
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.gguf.writer import GgufTensor, Piece, write_gguf
from tightfit.export.weights import FloatWeight, QuantizedWeight, StackedWeight, unstacked
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

SHAPE = (5, 6, 64)
METADATA = (text("general.architecture", "deepseek2"),)


def matrix(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).standard_normal(SHAPE[1:], dtype=np.float32)


class Pieces:
    """Loads that know how many of their arrays are alive."""

    def __init__(self) -> None:
        self.alive = 0
        self.most = 0

    def load(self, number: int) -> Piece:
        data = gguf.quants.quantize(matrix(number), Type.Q8_0)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(data, self._drop)
        return Piece(data)

    def _drop(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("split_max_bytes", [None, 1000])
def test_a_stack_is_written_piece_by_piece(split_max_bytes: int | None, tmp_path: Path) -> None:
    pieces = Pieces()
    loads = [functools.partial(pieces.load, number) for number in range(SHAPE[0])]
    stack = GgufTensor(name="e.weight", shape=SHAPE, ggml_type=Type.Q8_0, loads=loads)
    before = GgufTensor(
        name="n.weight",
        shape=(3,),
        ggml_type=Type.F32,
        loads=[lambda: Piece(np.ones(3, np.float32))],
    )
    files = write_gguf(
        tmp_path / "m.gguf",
        metadata=METADATA,
        tensors=[before, stack, dataclasses.replace(before, name="after.weight")],
        split_max_bytes=split_max_bytes,
    )
    assert pieces.most == 1
    whole = gguf.quants.quantize(np.stack([matrix(n) for n in range(SHAPE[0])]), Type.Q8_0)
    readers = [gguf.GGUFReader(file) for file in files]
    found = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    assert tuple(found["e.weight"].shape[::-1]) == SHAPE
    assert found["e.weight"].data.tobytes() == whole.tobytes()
    assert np.array_equal(found["after.weight"].data, np.ones(3, np.float32))


def test_a_piece_of_another_shape_is_refused(tmp_path: Path) -> None:
    loads = [
        lambda: Piece(np.zeros((6, 64), np.float32)),
        lambda: Piece(np.zeros((7, 64), np.float32)),
    ]
    stack = GgufTensor(name="e.weight", shape=(2, 6, 64), ggml_type=Type.F32, loads=loads)
    with pytest.raises(ArtifactError, match=r"e\.weight came as 13 rows"):
        write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[stack])
    assert list(tmp_path.iterdir()) == []


def test_missing_pieces_are_refused(tmp_path: Path) -> None:
    loads = [lambda: Piece(np.zeros((6, 64), np.float32))] * 2
    stack = GgufTensor(name="e.weight", shape=(3, 6, 64), ggml_type=Type.F32, loads=loads)
    with pytest.raises(ArtifactError, match="came as 12 rows"):
        write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[stack])


@pytest.mark.parametrize("shape", [(6, 64), (1, 6, 64)])
def test_a_stack_of_one(shape: tuple[int, ...], tmp_path: Path) -> None:
    data = matrix(0).reshape(shape)
    stack = GgufTensor(
        name="e.weight", shape=(1, 6, 64), ggml_type=Type.F32, loads=[lambda: Piece(data)]
    )
    (path,) = write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[stack])
    assert np.array_equal(gguf.GGUFReader(path).tensors[0].data, data.reshape(1, 6, 64))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0])
def test_parts_of_a_stack_are_read_alone(kind: Type, tmp_path: Path) -> None:
    stored = [gguf.quants.quantize(matrix(number), kind) for number in range(SHAPE[0])]
    loads = [functools.partial(Piece, data) for data in stored]
    stack = GgufTensor(name="e.weight", shape=SHAPE, ggml_type=kind, loads=loads)
    (path,) = write_gguf(tmp_path / "m.gguf", metadata=METADATA, tensors=[stack])
    (found,) = read_tensors(path)
    for number, data in enumerate(stored):
        np.testing.assert_array_equal(found.part(number), gguf.quants.dequantize(data, kind))
    rows = np.concatenate(list(found.chunks()))
    np.testing.assert_array_equal(rows.reshape(SHAPE), found.values())


def quantized(number: int) -> QuantizedTensor:
    grid = get_grid("Q8_0")
    packed = torch.from_numpy(gguf.quants.quantize(matrix(number), Type.Q8_0))
    return grid.unpack(packed, SHAPE[1:])


STACKS = {
    "floats": StackedWeight(
        parts=[
            FloatWeight(
                shape=SHAPE[1:],
                dtype=torch.bfloat16,
                load=lambda number=number: torch.from_numpy(matrix(number)).bfloat16(),
            )
            for number in range(SHAPE[0])
        ]
    ),
    "grid": StackedWeight(
        parts=[
            QuantizedWeight(shape=SHAPE[1:], grid="Q8_0", load=functools.partial(quantized, number))
            for number in range(SHAPE[0])
        ]
    ),
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
def test_values_of_a_stack(stack: StackedWeight) -> None:
    assert stack.shape == SHAPE
    values = stack.values()
    for number, part in enumerate(stack.parts):
        assert torch.equal(values[number], part.values())
        assert (part.values() - torch.from_numpy(matrix(number))).abs().max() < 0.05
    rows = stack.rows()
    assert torch.equal(torch.cat([rows(slice(0, 2)), rows(slice(2, 5))]), values)


def test_graphs_get_no_stacks() -> None:
    plain = {"a": STACKS["floats"].parts[0]}
    assert unstacked(plain) == plain
    with pytest.raises(AssertionError):
        unstacked({**plain, "b": STACKS["grid"]})
