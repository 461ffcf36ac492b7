"""Building an engine: the files, the structural check, and every way to fail."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest
from support.checkpoints import make_checkpoint
from support.tensorrt_models import PROFILE, decoder_onnx, engine_of, matmul_onnx

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.errors import (
    ArtifactError,
    DoesNotFitError,
    MissingPackageError,
    RuntimeFailureError,
)
from tightfit.export.tensorrt.plan_header import read_plan_header
from tightfit.export.tensorrt.structure import check_structure
from tightfit.runtimes.tensorrt import build as build_module
from tightfit.runtimes.tensorrt import package as package_module
from tightfit.runtimes.tensorrt.classic import build_engine_here
from tightfit.runtimes.tensorrt.package import Package

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is an optional, proprietary package")
ORPHAN_LIMIT_S = 20.0


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = make_checkpoint(folder / "checkpoint", "qwen2", num_hidden_layers=1)
    return decoder_onnx(folder, open_checkpoint(checkpoint), "int4-g128-sym")


@pytest.fixture(scope="module")
def built(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    phases = []
    report = engine_of(decoder, folder, "8.6", "8.9", progress=lambda *event: phases.append(event))
    return report, phases


@pytest.fixture
def matmul(tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    return matmul_onnx(folder, "int4")


def left_behind(folder):
    return [path.name for path in folder.iterdir() if path.is_file()]


def test_what_a_build_reports(built, decoder):
    report, phases = built
    assert report.size_bytes == report.file.stat().st_size
    assert report.builder.startswith("tensorrt_rtx 1.")
    assert report.capabilities == ("8.6", "8.9")
    assert report.layers > 50
    assert 100e6 < report.peak_bytes < 2e9
    assert sorted(left_behind(report.file.parent)) == ["model.build.log", "model.engine"]
    assert {phase for phase, _, _ in phases} >= {"Building engine"}
    assert all(0 < step <= steps for _, step, steps in phases)
    # The log is shipped: it must not tell where it was made.
    assert str(decoder.parent) not in report.log_file.read_text()


def test_the_structure_of_a_good_engine(built, decoder):
    report, _ = built
    found = check_structure(
        report.file, decoder, capabilities=["8.9", "8.6"], log_file=report.log_file
    )
    assert found.passed, found.problems
    assert found.quantized_tensors == found.verbatim_tensors == found.typed_tensors == 7
    assert found.capabilities == ("8.6", "8.9")
    assert report.builder.endswith(found.version)


def test_other_cards_than_asked_for_are_a_problem(built, decoder):
    found = check_structure(built[0].file, decoder, capabilities=["8.6"], log_file=None)
    assert found.problems == ("it is for compute capabilities 8.6, 8.9, not 8.6",)
    assert found.typed_tensors is None


def test_weights_of_another_model_are_a_problem(built, tmp_path):
    other = make_checkpoint(tmp_path / "other", "qwen2", num_hidden_layers=1, seed=1)
    other_onnx = decoder_onnx(tmp_path, open_checkpoint(other), "int4-g128-sym")
    found = check_structure(built[0].file, other_onnx, capabilities=["8.6", "8.9"], log_file=None)
    assert found.verbatim_tensors == 0
    assert "and 4 more" in found.problems[0]


def test_a_layer_that_fell_back_to_float_is_a_problem(built, decoder, tmp_path):
    log = tmp_path / "log"
    log.write_text(built[0].log_file.read_text().replace("Datatype: Int4", "Datatype: Half", 1))
    found = check_structure(built[0].file, decoder, capabilities=["8.6", "8.9"], log_file=log)
    assert found.typed_tensors == 6
    assert "keeps it as Half" in found.problems[0]


def test_a_profile_that_the_log_does_not_show_is_a_problem(built, decoder, tmp_path):
    log = tmp_path / "log"
    lines = built[0].log_file.read_text().splitlines(keepends=True)
    layers = [index for index, line in enumerate(lines) if "Datatype: Int4" in line]
    del lines[layers[-1]]
    log.write_text("".join(lines))
    found = check_structure(built[0].file, decoder, capabilities=["8.6", "8.9"], log_file=log)
    assert found.problems[0].endswith("the log shows it as Int4 in 1 of 2 profiles")


def test_a_cut_engine_is_a_problem_and_another_file_an_error(built, decoder, tmp_path):
    cut = tmp_path / "cut.engine"
    cut.write_bytes(built[0].file.read_bytes()[:-8])
    found = check_structure(cut, decoder, capabilities=["8.6", "8.9"], log_file=None)
    assert "its header says" in found.problems[0]
    for data in (b"", b"vtrt", b"ptrt" + bytes(200)):
        cut.write_bytes(data)
        with pytest.raises(ArtifactError, match="export it again"):
            read_plan_header(cut)


def test_the_refusal_carries_tensorrts_words_and_leaves_nothing(tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    with pytest.raises(RuntimeFailureError, match=r"sm86.*fp8") as caught:
        engine_of(matmul_onnx(folder, "fp8"), tmp_path, "8.6")
    assert "driver" not in caught.value.problem
    assert left_behind(tmp_path) == []


def test_an_operator_that_tensorrt_does_not_know(tmp_path):
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "x"], ["y"], domain="com.microsoft", name="down_proj", N=1, K=1
    )
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)
    with pytest.raises(RuntimeFailureError, match="MatMulNBits") as caught:
        engine_of(path, tmp_path, "8.6")
    assert "standard dialect" in caught.value.hint


def test_damaged_onnx_files_are_refused_before_a_build(tmp_path, matmul):
    data = matmul.with_name("model.onnx.data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="would end at byte"):
        engine_of(matmul, tmp_path, "8.6")
    data.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        engine_of(matmul, tmp_path, "8.6")
    data.write_bytes(whole)
    matmul.write_bytes(matmul.read_bytes()[:50])
    with pytest.raises(ArtifactError):
        engine_of(matmul, tmp_path, "8.6")
    assert left_behind(tmp_path) == []


def test_a_full_disk_keeps_the_old_engine(tmp_path, matmul, monkeypatch):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"old")
    # Of the file system's limits, the size of a file is the one that a test may set: the child
    # inherits it, and write() then fails as on a full disk.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    started = build_module.ChildProcess

    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
        try:
            return started(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(build_module, "ChildProcess", limited)
    with pytest.raises(ArtifactError, match=r"cannot write.*too large"):
        engine_of(matmul, tmp_path, "8.6")
    assert left_behind(tmp_path) == ["model.engine"]
    assert engine.read_bytes() == b"old"


def test_too_little_memory_is_told_before_a_child_starts(tmp_path, matmul, monkeypatch):
    monkeypatch.setattr("tightfit.runtimes.tensorrt.memory.available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(build_module, "ChildProcess", None)
    with pytest.raises(DoesNotFitError, match="GiB"):
        engine_of(matmul, tmp_path, "8.6")


def test_a_missing_package_names_the_extra(tmp_path, matmul, monkeypatch):
    monkeypatch.setattr(package_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"tightfit\[tensorrt\]"):
        engine_of(matmul, tmp_path, "8.6")


def test_interrupting_a_build_ends_the_child_and_leaves_nothing(tmp_path, matmul):
    def interrupt(_phase, _step, _steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_of(matmul, tmp_path, "8.6", progress=interrupt)
    assert left_behind(tmp_path) == []


def test_a_killed_child_is_our_error(tmp_path, decoder, monkeypatch):
    started = build_module.ChildProcess

    def killed(*arguments):
        child = started(*arguments)
        threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL)).start()
        return child

    monkeypatch.setattr(build_module, "ChildProcess", killed)
    with pytest.raises(RuntimeFailureError, match="signal 9") as caught:
        engine_of(decoder, tmp_path, "8.6")
    assert "memory ran out" in caught.value.hint
    assert left_behind(tmp_path) == []


def test_the_child_dies_with_its_parent(tmp_path, decoder):
    script = (
        "import sys, os; from pathlib import Path\n"
        "from tightfit.runtimes.tensorrt.build import build_engine\n"
        "from tightfit.runtimes.tensorrt import build as module\n"
        "from tightfit.runtimes.tensorrt.profile import Profile\n"
        "started = module.ChildProcess\n"
        "def tell(*a):\n"
        "    child = started(*a); print(child.pid, flush=True); return child\n"
        "module.ChildProcess = tell\n"
        "folder = Path(sys.argv[2])\n"
        "build_engine(Path(sys.argv[1]), folder / 'e', capabilities=['8.6'],\n"
        "    profile=Profile(context_tokens=64), log_file=folder / 'l')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(decoder), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert "e" not in left_behind(tmp_path)


def test_classical_tensorrt_is_absent_here(tmp_path, matmul):
    with pytest.raises(MissingPackageError, match="package tensorrt,") as caught:
        build_engine_here(matmul, tmp_path, profile=PROFILE)
    assert "on the machine that has the GPU" in caught.value.hint


def test_building_without_naming_a_card(tmp_path, matmul):
    """TensorRT for RTX stands in for the classical package, and then builds for all its cards."""
    report = build_engine_here(matmul, tmp_path, profile=PROFILE, package=Package.RTX)
    assert report.file == tmp_path / "model.this-gpu.engine"
    assert sorted(left_behind(tmp_path)) == ["model.this-gpu.build.log", "model.this-gpu.engine"]
    assert set(read_plan_header(report.file).capabilities) >= {"8.0", "8.6", "8.9", "12.0"}


def test_an_engine_in_the_way(tmp_path, matmul):
    (tmp_path / "model.this-gpu.engine").write_bytes(b"old")
    with pytest.raises(ArtifactError, match="exists already"):
        build_engine_here(matmul, tmp_path, profile=PROFILE, package=Package.RTX)
