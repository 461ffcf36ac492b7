"""DeepSeek-V3 quantized expert by expert: what it gives, and the same bytes whatever happens."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from support.full_disk import full_disk
from support.reporters import Notes

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.decoder import Decoder
from tightfit.calib.precision import Precision
from tightfit.cli.main import run
from tightfit.export.manifest import read_manifest
from tightfit.pipeline import passes
from tightfit.pipeline.export import run_export
from tightfit.pipeline.job import FOLDER
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms import column_loop
from tightfit.quant.algorithms.hessian import HessianAccumulator
from tightfit.reporter import SilentReporter

GGUF = "model-Q4_0.gguf"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = CalibrationOptions(samples=6, max_tokens=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deepseek_v3(tmp_path_factory.mktemp("v3") / "model", rms_norm_eps=1e-6)


def request(model: Path, output: Path, **changes: object) -> ExportRequest:
    values: dict[str, object] = {
        "model": str(model),
        "target": "a100x8-80gb",
        "output": output,
        "scheme": "q4_0",
        "calibration": SMALL,
    }
    return ExportRequest(**values | changes)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    with single_thread():
        run_export(request(model, output), SilentReporter())
    return output


@pytest.fixture(scope="module")
def from_original(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("original") / "out"
    method = Method(from_original=True)
    with single_thread():
        run_export(request(model, output, method=method), SilentReporter())
    return output


def test_the_file_runs_in_llamacpp_and_is_exact(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(whole), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert result["verification"]["parity"]["passed"]
    assert result["verification"]["tensors"] == result["verification"]["exact_tensors"]


def test_the_manifest_counts_the_tokens_of_every_expert(whole: Path) -> None:
    artifact = read_manifest(whole).artifacts[0]
    calibration = read_manifest(whole).calibration
    assert calibration is not None
    assert [record.layer for record in artifact.experts] == [1, 2]
    for record in artifact.experts:
        assert len(record.tokens) == len(record.own_share) == 16
        assert sum(record.tokens) == calibration.tokens * 4, "each token visits four"
        shares = [share for _, share in sorted(zip(record.tokens, record.own_share, strict=True))]
        assert shares[0] < shares[-1] < 1


def test_more_tokens_of_its_own_lower_an_experts_error(model: Path, tmp_path: Path) -> None:
    """GPTQ on an expert's own tokens beats rounding, on that expert's tokens."""
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.GPTQ, Algorithm.AWQ_GPTQ):
        output = tmp_path / algorithm
        method = Method(algorithm=algorithm)
        run_export(request(model, output, method=method), SilentReporter())
        tensors = read_manifest(output).artifacts[0].tensors
        errors[algorithm] = {
            tensor.name: tensor.relative_error for tensor in tensors if "_exps" in tensor.name
        }
    assert len(errors[Algorithm.RTN]) == 6
    for name, rounded in errors[Algorithm.RTN].items():
        assert errors[Algorithm.GPTQ][name] < 0.8 * rounded
        assert errors[Algorithm.AWQ_GPTQ][name] < 0.85 * rounded


def test_an_expert_that_no_token_visits(tmp_path: Path) -> None:
    """Its router's correction keeps it from ever being chosen; the export says so and goes on."""
    model = make_deepseek_v3(tmp_path / "model", cold_experts=(3,), rms_norm_eps=1e-6)
    notes = Notes()
    run_export(request(model, tmp_path / "out"), notes)
    artifact = read_manifest(tmp_path / "out").artifacts[0]
    assert all(record.tokens[3] == 0 == record.own_share[3] for record in artifact.experts)
    assert any("no calibration token visited" in line for line in notes.warnings)
    assert run(["verify", str(tmp_path / "out")]) == 0


def test_processes_give_the_same_bytes(model: Path, from_original: Path, tmp_path: Path) -> None:
    method = Method(from_original=True)
    changed = request(model, tmp_path / "out", method=method, workers=2)
    with single_thread():
        run_export(changed, SilentReporter())
    assert (tmp_path / "out" / GGUF).read_bytes() == (from_original / GGUF).read_bytes()


def test_states_of_the_original_give_another_result_that_is_close(
    whole: Path, from_original: Path
) -> None:
    assert (whole / GGUF).read_bytes() != (from_original / GGUF).read_bytes()
    one, other = (read_manifest(folder).artifacts[0] for folder in (whole, from_original))
    assert other.scheme.calibrate_from == "original"
    errors = [
        (first.relative_error, second.relative_error)
        for first, second in zip(one.tensors, other.tensors, strict=True)
        if first.relative_error
    ]
    assert errors
    assert all(second == pytest.approx(first, rel=0.5) for first, second in errors)


def test_passes_and_hessians_alone_may_round_factors(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}

    def watch(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def watched(*arguments: Any, **settings: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return plain(*arguments, **settings)

        monkeypatch.setattr(owner, name, watched)

    inside = ((Decoder, "run_block"), (passes, "run_expert"), (HessianAccumulator, "add"))
    outside = ((column_loop, "factor_inverse"), (column_loop, "_visit_columns"))
    for owner, name in (*inside, *outside):
        watch(owner, name)
    method = Method(precision=Precision.HIGH)
    run_export(request(model, tmp_path / "out", method=method), SilentReporter())
    assert seen == {name: {"high"} for _, name in inside} | {
        name: {"highest"} for _, name in outside
    }


def test_without_calibration(model: Path, tmp_path: Path) -> None:
    method = Method(algorithm=Algorithm.RTN)
    options = CalibrationOptions(source="none")
    first, second = tmp_path / "one", tmp_path / "two"
    run_export(request(model, first, method=method, calibration=options), SilentReporter())
    changed = request(model, second, method=method, calibration=options, workers=2)
    run_export(changed, SilentReporter())
    assert (first / GGUF).read_bytes() == (second / GGUF).read_bytes()
    assert run(["verify", str(first)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("start", "kills"), [("quantized", 5), ("original", 1)])
def test_killed_at_random_points_it_ends_with_the_same_bytes(
    start: str, kills: int, model: Path, whole: Path, from_original: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tightfit", "export", str(model), "-t", "a100x8-80gb"]
    command += ["--scheme", "q4_0", "--calib-samples", "6", "--calib-length", "64"]
    command += ["--calibrate-from", start, "-o", str(output)]
    chance = random.Random(start)
    for _ in range(kills):
        before = len(list((output / FOLDER).rglob("*.safetensors")))
        process = subprocess.Popen(
            command, env=ONE_THREAD, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        more = before + chance.choice((1, 1, 2))
        while process.poll() is None and len(list((output / FOLDER).rglob("*.safetensors"))) < more:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (output / "tightfit.json").exists()
    subprocess.run(command, env=ONE_THREAD, check=True, capture_output=True)
    expected = whole if start == "quantized" else from_original
    assert (output / GGUF).read_bytes() == (expected / GGUF).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_unit_is_made_again(
    damage: str, model: Path, whole: Path, tmp_path: Path
) -> None:
    """Of a block whose states are long gone: the finished blocks before it are passed again."""
    changed = request(model, tmp_path / "out")
    reporter = _StopAtWriting()
    with single_thread(), pytest.raises(KeyboardInterrupt):
        run_export(changed, reporter)
    (unit,) = (tmp_path / "out" / FOLDER).rglob("block-00001-experts-00008.safetensors")
    content = bytearray(unit.read_bytes())
    if damage == "cut":
        del content[-1000:]
    else:
        content[-1000] ^= 1
    unit.write_bytes(content)
    with single_thread():
        run_export(changed, SilentReporter())
    assert (tmp_path / "out" / GGUF).read_bytes() == (whole / GGUF).read_bytes()


class _StopAtWriting(SilentReporter):
    def stage(self, name: str) -> None:
        if name.startswith("Writing"):
            raise KeyboardInterrupt


def test_what_needs_activations_is_refused_without_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(model), "-t", "a100x8-80gb", "--scheme", "q4_0"]
    arguments += ["--calib", "none", "--method", "gptq", "-o", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert "gives no activations" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_memory_that_is_too_little_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(model), "-t", "a100x8-80gb", "--scheme", "q4_0"]
    assert run([*arguments, "--max-memory", "100M", "-o", str(tmp_path / "out")]) == 2
    assert "--max-memory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_and_the_job_goes_on_afterwards(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["export", str(model), "-t", "a100x8-80gb", "--scheme", "q4_0", "-o", str(output)]
    command += ["--calib-samples", "6", "--calib-length", "64"]
    for limit_bytes in (100_000, 400_000):
        with single_thread(), full_disk(limit_bytes):
            assert run(command) == 1
        assert "free some" in capsys.readouterr().err
        assert not (output / "tightfit.json").exists()
    with single_thread():
        assert run(command) == 0
    assert (output / GGUF).read_bytes() == (whole / GGUF).read_bytes()


@pytest.mark.slow
def test_two_ray_nodes_one_of_whose_workers_is_killed(
    model: Path, from_original: Path, tmp_path: Path
) -> None:
    """The same bytes as one process gives; a worker that had a task dies half-way."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.add_node(num_cpus=1)
    killed = Killer(tmp_path / "out" / FOLDER)
    try:
        changed = request(
            model,
            tmp_path / "out",
            method=Method(from_original=True),
            ray_address=cluster.address,
        )
        with single_thread():
            killed.start()
            run_export(changed, SilentReporter())
    finally:
        killed.stop()
        cluster.shutdown()
    assert killed.victims == 1
    assert (tmp_path / "out" / GGUF).read_bytes() == (from_original / GGUF).read_bytes()


class Killer(threading.Thread):
    """Kills one Ray worker at work once the job has its first unit of experts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._ended = threading.Event()
        self.victims = 0

    def run(self) -> None:
        while not self._ended.wait(0.01):
            if any(self._folder.rglob("*experts*.safetensors")):
                self.victims += self._kill_one()
                if self.victims:
                    return

    def stop(self) -> None:
        self._ended.set()

    def _kill_one(self) -> int:
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                title = status.read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::_Actor"):
                os.kill(int(status.parent.name), signal.SIGKILL)
                return 1
        return 0


@contextmanager
def single_thread() -> Iterator[None]:
    """Both sides with one thread: the number of threads may decide the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_native_fp8_to_split_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R1's own form for eight A100s: experts at 8 bits, in files that llama.cpp reads together."""
    plain = make_deepseek_v3(tmp_path / "plain", rms_norm_eps=1e-6)
    model = to_fp8_blocks(plain, tmp_path / "model")
    command = ["export", str(model), "-t", "a100x8-80gb", "--scheme", "experts-q8_0"]
    command += ["--calib", "none", "--split-max-size", "300K", "-o", str(tmp_path / "out")]
    assert run(command) == 0
    assert len(list((tmp_path / "out").glob("*-of-*.gguf"))) > 1
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "out"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert result["verification"]["parity"]["passed"]
