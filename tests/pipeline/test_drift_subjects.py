"""Which artifacts are measured: all that run here, or exactly those that were named."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.drift_reports import report

from tightfit.drift.report import DriftReport
from tightfit.errors import ArtifactError, MissingPackageError, RuntimeFailureError, UsageError
from tightfit.export.manifest import (
    SCHEMA_VERSION,
    Artifact,
    FileRecord,
    InputRecord,
    Manifest,
    SchemeRecord,
    read_manifest,
    write_manifest,
)
from tightfit.pipeline.drift import DriftRequest, subjects
from tightfit.pipeline.drift.subjects import Subject, record_reports
from tightfit.reporter import Reporter, SilentReporter
from tightfit.runtimes import opening


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


def find_subjects(
    path: Path | None, formats: tuple[str, ...], reporter: Reporter, **changes: Any
) -> tuple[Subject, ...]:
    request = DriftRequest(artifact=path, baseline=None, formats=formats, **changes)
    return subjects.find_subjects(request, reporter)


def artifact(format_name: str, file: str) -> Artifact:
    return Artifact(
        format=format_name,
        scheme=SchemeRecord(name="int4-g128", method="gptq", order="static", reason="asked for"),
        files=(FileRecord(name=file, size_bytes=1, sha256="ab" * 32),),
        bits_per_weight=4.1,
        weights_sha256="cd" * 32,
        tensors=(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        input=InputRecord(id="m", revision=None, model_type="qwen2", parameters=1, files=()),
        target="rtx3060-8gb",
        context_tokens=64,
        command=("export", "tiny-r1"),
        calibration=None,
        imatrix=None,
        artifacts=(
            artifact("gguf", "m.gguf"),
            artifact("onnx", "onnx/model.onnx"),
            artifact("tensorrt", "tensorrt/model.onnx"),
        ),
        companions=(),
        versions={},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> dict[str, RuntimeFailureError]:
    """What cannot run here, by format, with the reason."""
    reasons = {"tensorrt": RuntimeFailureError("no GPU", hint="use one")}
    monkeypatch.setattr(subjects, "unavailable", reasons.get)
    return reasons


@pytest.mark.usefixtures("missing")
def test_what_cannot_run_is_left_out_with_its_reason(folder: Path) -> None:
    warnings = Warnings()
    found = find_subjects(folder, (), warnings)
    assert [subject.files[0] for subject in found] == [
        folder / "m.gguf",
        folder / "onnx/model.onnx",
    ]
    assert warnings.texts == ["tensorrt is not measured: no GPU"]


@pytest.mark.usefixtures("missing")
def test_a_named_format_must_run(folder: Path) -> None:
    (only,) = find_subjects(folder, ("onnx",), SilentReporter())
    assert only.format == "onnx"
    with pytest.raises(RuntimeFailureError, match="no GPU"):
        find_subjects(folder, ("onnx", "tensorrt"), SilentReporter())


def test_nothing_that_runs_is_an_error(
    folder: Path, missing: dict[str, RuntimeFailureError]
) -> None:
    missing |= {name: RuntimeFailureError(f"no {name}") for name in ("gguf", "onnx")}
    with pytest.raises(RuntimeFailureError, match="no gguf"):
        find_subjects(folder, (), SilentReporter())


def test_a_format_that_the_folder_lacks_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no artifact of the format awq") as caught:
        find_subjects(folder, ("awq",), SilentReporter())
    assert "gguf, onnx, tensorrt" in caught.value.allowed


def test_single_files(tmp_path: Path) -> None:
    for name, format_name in (("a.gguf", "gguf"), ("b.onnx", "onnx")):
        (tmp_path / name).touch()
        (subject,) = find_subjects(tmp_path / name, (), SilentReporter())
        assert (subject.format, subject.facts.scheme) == (format_name, None)
    (tmp_path / "c.engine").touch()
    with pytest.raises(ArtifactError, match=r"c\.engine is no artifact that runs by itself"):
        find_subjects(tmp_path / "c.engine", (), SilentReporter())
    with pytest.raises(ArtifactError, match="no artifact 'nowhere'"):
        find_subjects(Path("nowhere"), (), SilentReporter())


def test_an_endpoint_goes_without_an_artifact(tmp_path: Path) -> None:
    (subject,) = find_subjects(None, (), SilentReporter(), endpoint="http://localhost:1/v1")
    assert (subject.format, subject.files) == ("endpoint", ())
    with pytest.raises(UsageError, match="both an artifact"):
        find_subjects(tmp_path, (), SilentReporter(), endpoint="http://localhost:1/v1")
    with pytest.raises(UsageError, match="neither an artifact nor an endpoint"):
        find_subjects(None, (), SilentReporter())


def test_each_report_lies_with_its_artifact(folder: Path) -> None:
    subjects = {each.format: each for each in find_subjects(folder, (), SilentReporter())}

    def reports(**kl: float) -> dict[str, DriftReport]:
        return {
            name: dataclasses.replace(report(kl=nats), artifact=subjects[name].facts)
            for name, nats in kl.items()
        }

    def kept() -> dict[str, float | None]:
        made = read_manifest(folder).artifacts
        return {each.format: each.drift and each.drift["tokens"]["kl_mean_nats"] for each in made}

    record_reports(folder, reports(onnx=1.0, gguf=2.0), SilentReporter())
    assert kept() == {"gguf": 2.0, "onnx": 1.0, "tensorrt": None}
    record_reports(folder, reports(onnx=3.0), SilentReporter())
    assert kept() == {"gguf": 2.0, "onnx": 3.0, "tensorrt": None}
    of_another = reports(onnx=4.0)
    facts = dataclasses.replace(of_another["onnx"].artifact, weights_sha256="00" * 32)
    of_another["onnx"] = dataclasses.replace(of_another["onnx"], artifact=facts)
    notes = Warnings()
    record_reports(folder, of_another, notes)
    assert kept() == {"gguf": 2.0, "onnx": 3.0, "tensorrt": None}
    assert "was replaced while it was measured" in notes.texts[0]


def test_why_a_format_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingPackageError("no such package", hint="install it")

    assert opening.unavailable("gguf") is None
    assert opening.unavailable("onnx") is None
    monkeypatch.setattr(opening, "require_onnxruntime", absent)
    assert isinstance(opening.unavailable("onnx"), MissingPackageError)
    monkeypatch.setattr(opening.torch.cuda, "is_available", lambda: False)
    reason = opening.unavailable("tensorrt")
    assert isinstance(reason, RuntimeFailureError)
    assert "NVIDIA GPU" in reason.problem
