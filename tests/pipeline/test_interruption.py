"""Killed, out of disk, or asked for something else: finished work is kept, the bytes are equal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.full_disk import full_disk

from tightfit.cli.main import run
from tightfit.errors import ArtifactError
from tightfit.pipeline.export import run_export
from tightfit.pipeline.job import FOLDER, Job
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter

Build = Callable[..., ExportRequest]


class StopAfter(SilentReporter):
    """Raises when that many units are finished."""

    def __init__(self, units: int) -> None:
        self.units = units

    def progress(self, _total: int, _description: str, /):  # type: ignore[no-untyped-def]
        reporter = self

        class Counter:
            def __enter__(self) -> "Counter":
                return self

            def __exit__(self, *_: object) -> None:
                return None

            def advance(self, steps: int = 1) -> None:
                reporter.units -= steps
                if reporter.units == 0:
                    raise KeyboardInterrupt

        return Counter()


@pytest.mark.parametrize("units", [1, 2, 3, 4])
def test_an_interrupted_export_ends_with_the_same_bytes(
    units: int, request_for: Build, tmp_path: Path
) -> None:
    whole = request_for(output=tmp_path / "whole")
    run_export(whole, SilentReporter())
    broken = request_for(output=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run_export(broken, StopAfter(units))
    assert len(list((broken.output / FOLDER).rglob("*.safetensors"))) == units
    assert not (broken.output / "tightfit.json").exists()

    run_export(broken, SilentReporter())

    for name in ("model-Q4_0.gguf", "tightfit.json"):
        assert (broken.output / name).read_bytes() == (whole.output / name).read_bytes()
    assert not (broken.output / FOLDER).exists()


def test_an_unfinished_job_of_other_options_is_refused(request_for: Build) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_export(request_for(), StopAfter(2))

    with pytest.raises(ArtifactError, match="unfinished export with other inputs"):
        run_export(request_for(scheme="q8_0"), SilentReporter())

    run_export(request_for(scheme="q8_0", overwrite=True), SilentReporter())


def test_a_job_that_stopped_before_any_work_does_not_bind(tmp_path: Path) -> None:
    Job(tmp_path, {"device": "nonsense"}, overwrite=False)
    job = Job(tmp_path, {"device": "cpu"}, overwrite=False)
    job.folder("q4_0-gptq").mkdir()
    (job.folder("q4_0-gptq") / "hidden-00000.f32").write_bytes(b"work")
    with pytest.raises(ArtifactError, match="unfinished export"):
        Job(tmp_path, {"device": "cuda"}, overwrite=False)


def test_a_full_disk_is_said_and_nothing_looks_whole(
    request_for: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_for()
    arguments = ["export", str(request.model), "-t", "rtx3060-8gb", "--scheme", "q4_0"]
    arguments += ["-o", str(request.output), "--calib-samples", "6", "--calib-length", "64"]
    for limit_bytes in (100_000, 300_000, 600_000):
        with full_disk(limit_bytes):
            assert run(arguments) == 1
        said = capsys.readouterr().err
        assert "free some space" in said
        assert "Traceback" not in said
        assert not list(request.output.glob("*.gguf"))
        assert not list(request.output.rglob("*.part"))
        assert not (request.output / "tightfit.json").exists()

    run_export(request, SilentReporter())
    run_export(request_for(output=tmp_path / "whole"), SilentReporter())
    name = "model-Q4_0.gguf"
    assert (request.output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_same_bytes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=6)

    def command(output: Path) -> list[str]:
        arguments = ["export", str(model), "-t", "rtx3060-8gb", "--scheme", "q4_k_m"]
        return [sys.executable, "-m", "tightfit", *arguments, "-o", str(output)]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    for kept_units in (2, 4):
        job = tmp_path / "killed" / FOLDER
        process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.PIPE)
        deadline_s = time.monotonic() + 120
        while len(list(job.rglob("*.safetensors"))) < kept_units:
            assert process.poll() is None, "it finished before it could be killed"
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "tightfit.json").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)

    name = "model-Q4_K_M.gguf"
    killed, whole = (tmp_path / folder / name for folder in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()
