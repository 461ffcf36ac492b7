"""What is written is what `onnx` and onnxruntime read, and nothing half-written stays."""

import errno
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model
from support.onnx_weights import floating, quantized, raw_bytes, small_graph

from tightfit.errors import ArtifactError
from tightfit.export.onnx.graph import OnnxGraph, StoredTensor
from tightfit.export.onnx.options import Dialect
from tightfit.export.onnx.writer import write_onnx

WEIGHTS = {
    "embed.weight": floating((100, 96), torch.float16),
    "norm.weight": floating((7,), torch.float32),
    "q.weight": quantized("int4-g32-asym", (5, 96)),
    "k.weight": quantized("int4-channel-sym", (5, 33)),
    "large.weight": quantized("int8-g64-sym", (4096, 256)),
}


@pytest.fixture
def graph() -> OnnxGraph:
    return small_graph(WEIGHTS, dialect=Dialect.STANDARD)


def stored_bytes(path: Path) -> dict[str, bytes]:
    """Raw bytes of every initializer, as the `onnx` package reads them."""
    model = onnx.load(path, load_external_data=False)
    load_external_data_for_model(model, str(path.parent))
    return {tensor.name: tensor.raw_data for tensor in model.graph.initializer}


def test_every_byte_is_read_back(tmp_path: Path, graph: OnnxGraph) -> None:
    seen = []
    files = write_onnx(
        tmp_path / "new" / "model.onnx",
        graph,
        progress=lambda name, done, total: seen.append((name, done, total)),
    )
    folder = tmp_path / "new"
    assert files == (folder / "model.onnx", folder / "model.onnx.data")
    assert sorted(folder.iterdir()) == sorted(files)
    expected = {tensor.name: raw_bytes(tensor) for _, tensor in graph.data}
    assert stored_bytes(files[0]) == expected
    assert files[1].stat().st_size == graph.data_bytes
    assert [name for name, _, _ in seen] == [tensor.name for _, tensor in graph.data]
    assert seen[-1][1:] == (graph.data_bytes, graph.data_bytes)
    onnx.checker.check_model(files[0], full_check=True)
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    (values,) = session.run(["large.weight.out"], {})
    np.testing.assert_array_equal(values, WEIGHTS["large.weight"].values().numpy())


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        write_onnx(folder / "model.onnx", small_graph(WEIGHTS, dialect=Dialect.STANDARD))
    for name in ("model.onnx", "model.onnx.data"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second


def test_a_result_is_replaced_only_when_asked(tmp_path: Path, graph: OnnxGraph) -> None:
    path = tmp_path / "model.onnx"
    other = small_graph({"norm.weight": WEIGHTS["norm.weight"]})
    files = write_onnx(path, graph)
    before = [file.read_bytes() for file in files]
    with pytest.raises(ArtifactError, match="exists already") as caught:
        write_onnx(path, other)
    assert "--overwrite" in caught.value.hint
    assert [file.read_bytes() for file in files] == before
    path.unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data exists already"):
        write_onnx(path, other)
    write_onnx(path, other, overwrite=True)
    assert list(stored_bytes(path)) == ["norm.weight"]
    assert sorted(tmp_path.iterdir()) == list(files)


def failing(graph: OnnxGraph, error: BaseException) -> OnnxGraph:
    """The same graph, whose last tensor breaks off after its first bytes."""
    offset, tensor = graph.data[-1]

    def chunks() -> Iterator[bytes]:
        yield bytes(16)
        raise error

    return replace(graph, data=(*graph.data[:-1], (offset, replace(tensor, chunks=chunks))))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ArtifactError),
        (OSError(errno.EIO, "Input/output error"), ArtifactError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_nothing_is_left_of_a_failure(
    error: BaseException, raised: type[BaseException], tmp_path: Path, graph: OnnxGraph
) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(raised) as caught:
        write_onnx(path, failing(graph, error))
    assert list(tmp_path.iterdir()) == []
    if raised is ArtifactError:
        full = error.errno == errno.ENOSPC
        assert ("the disk is full" if full else "cannot be written") in str(caught.value)
    files = write_onnx(path, graph)
    before = [file.read_bytes() for file in files]
    with pytest.raises(raised):
        write_onnx(path, failing(graph, error), overwrite=True)
    assert sorted(tmp_path.iterdir()) == list(files)
    assert [file.read_bytes() for file in files] == before, "the old result outlives the failure"


def test_a_disk_that_fills_up_under_the_writer(
    tmp_path: Path, graph: OnnxGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(ArtifactError, match="the disk is full"):
        write_onnx(tmp_path / "model.onnx", graph)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("had_result", [False, True])
def test_a_model_is_never_left_beside_other_data(
    had_result: bool, tmp_path: Path, graph: OnnxGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    if had_result:
        write_onnx(path, small_graph({"norm.weight": WEIGHTS["norm.weight"]}))
    rename, calls = Path.replace, []

    def fail_second(source: Path, target: Path) -> Path:
        calls.append(target.name)
        if len(calls) == 2:
            assert not path.exists()
            raise OSError(errno.EACCES, "Permission denied")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fail_second)
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_onnx(path, graph, overwrite=True)
    assert calls == ["model.onnx.data", "model.onnx"], "the model, which readers open, comes last"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, graph: OnnxGraph) -> None:
    stale = tmp_path / ".model.onnx.partial"
    stale.mkdir()
    (stale / "model.onnx.data").write_bytes(b"half")
    files = write_onnx(tmp_path / "model.onnx", graph)
    assert sorted(tmp_path.iterdir()) == list(files)


def test_room_is_asked_for_before_anything_is_loaded(
    tmp_path: Path, graph: OnnxGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**20))
    unloadable = replace(
        graph, data=tuple((at, replace(part, chunks=pytest.fail)) for at, part in graph.data)
    )
    with pytest.raises(ArtifactError, match=r"model\.onnx needs .* GiB and .* GiB free"):
        write_onnx(tmp_path / "model.onnx", unloadable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_bytes", [0, 1, 27, 29, 4096])
def test_data_must_fit_type_and_shape(n_bytes: int, tmp_path: Path) -> None:
    weights = {"norm.weight": WEIGHTS["norm.weight"]}
    graph = small_graph(weights)
    ((offset, tensor),) = graph.data
    wrong = replace(tensor, chunks=lambda: iter([bytes(n_bytes)]))
    with pytest.raises(ArtifactError, match=f"norm.weight came as {n_bytes} bytes") as caught:
        write_onnx(tmp_path / "model.onnx", replace(graph, data=((offset, wrong),)))
    assert "FLOAT [7] is stored as 28 bytes" in caught.value.allowed
    assert list(tmp_path.iterdir()) == []


def test_one_chunk_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive, most, lock = [0], [0], threading.Lock()

    class Chunk(bytearray):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            with lock:
                alive[0] += 1
                most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    graph = small_graph({"w.weight": floating((1024, 64), torch.float32)})
    ((offset, tensor),) = graph.data
    streamed = StoredTensor(
        name=tensor.name,
        dtype=ir.DataType.FLOAT,
        shape=tensor.shape,
        chunks=lambda: (Chunk(4096) for _ in range(64)),
    )
    write_onnx(tmp_path / "model.onnx", replace(graph, data=((offset, streamed),)))
    assert most[0] <= 2
