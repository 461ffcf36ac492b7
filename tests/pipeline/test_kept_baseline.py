"""A kept baseline: the big model never runs twice, and a wrong or damaged one is told."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.tiny_r1 import TINY_R1, tiny_r1_gguf

from tightfit.drift.measures import versions
from tightfit.errors import DriftError, RuntimeFailureError
from tightfit.pipeline.drift import (
    DriftRequest,
    ProtocolChoice,
    baseline,
    finding,
    kept,
    make_baseline,
    original,
    run_drift,
)
from tightfit.pipeline.drift.measurement import Measurement
from tightfit.reporter import SilentReporter
from tightfit.runtimes.llamacpp import LlamaCpp

PROTOCOL = ProtocolChoice(max_tokens=60)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_r1_gguf(tmp_path_factory.mktemp("tiny-r1"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "base.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIGHTFIT_CACHE", str(path.parent / "cache"))
        make_baseline(request(None, path), SilentReporter())
    return path


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has never measured anything."""
    monkeypatch.setenv("TIGHTFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def request(artifact: Path | None, path: Path | None, **changes: object) -> DriftRequest:
    made = DriftRequest(
        artifact=artifact,
        baseline=None,
        subset="embedded:n=12",
        protocol=PROTOCOL,
        baseline_cache=path,
    )
    return dataclasses.replace(made, **changes)


class Said(SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.infos: list[str] = []

    def info(self, text: str) -> None:
        self.infos.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("the baseline's model was run")


@pytest.mark.usefixtures("fresh_cache")
def test_the_model_does_not_run_where_its_baseline_was_kept(
    gguf: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without,) = run_drift(request(gguf, None), SilentReporter())
    monkeypatch.setattr(original, "LlamaCpp", no_model)
    monkeypatch.setattr(original, "Decoder", no_model)
    before = packed.read_bytes()

    (again,) = run_drift(request(gguf, None), SilentReporter())
    monkeypatch.setenv("TIGHTFIT_CACHE", str(gguf.parent / "another cache"))
    (restored,) = run_drift(request(gguf, packed), SilentReporter())

    assert not without.report.baseline.cached
    for result in (again, restored):
        assert result.report.baseline.cached
        assert result.report.tokens == without.report.tokens
        assert result.report.noise_floor == without.report.noise_floor
        assert result.report.accuracy == without.report.accuracy
    assert packed.read_bytes() == before


@pytest.mark.usefixtures("fresh_cache")
def test_equal_baselines_are_equal_files(packed: Path, tmp_path: Path) -> None:
    make_baseline(request(None, tmp_path / "again.zip"), SilentReporter())
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"subset": "embedded:n=13"}, "problems"),
        ({"subset": "embedded:n=12,seed=1"}, "problems"),
        ({"protocol": ProtocolChoice(max_tokens=61)}, "protocol"),
        ({"baseline": "org/another"}, "model"),
    ],
)
def test_another_baseline_is_refused_by_what_differs(
    gguf: Path, packed: Path, changes: dict[str, object], what: str
) -> None:
    with pytest.raises(DriftError, match=f"holds another baseline: .*{what}"):
        run_drift(request(gguf, packed, **changes), SilentReporter())


@pytest.mark.usefixtures("fresh_cache")
def test_a_folder_with_other_weights_is_another_baseline(
    gguf: Path, packed: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "tiny-r1"
    shutil.copytree(TINY_R1, changed)
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DriftError, match=r"another baseline: .*content"):
        run_drift(request(gguf, packed, baseline=str(changed)), SilentReporter())


@pytest.mark.usefixtures("fresh_cache")
def test_a_changed_definition_makes_it_anew(
    gguf: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.zip"
    shutil.copy(packed, path)
    monkeypatch.setitem(versions.VERSIONS, "grading", 99)
    said = Said()
    (result,) = run_drift(request(gguf, path), said)
    assert not result.report.baseline.cached
    assert any("another definition of grading" in text for text in said.warnings)
    assert path.read_bytes() != packed.read_bytes()
    (result,) = run_drift(request(gguf, path), SilentReporter())
    assert result.report.baseline.cached


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("damage", ["cut", "flip", "text", "record", "journal", "trace"])
def test_a_damaged_file_is_an_error(gguf: Path, packed: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "base.zip"
    data = bytearray(packed.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("not a zip")
    else:
        member = {"record": "baseline.json", "journal": "answers.jsonl", "trace": "traces/"}
        with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                is_hit = name.startswith(member[damage])
                new.writestr(name, b"nonsense\n" if is_hit else old.read(name))
    with pytest.raises(DriftError, match=r"no kept baseline|damaged|is no answer"):
        run_drift(request(gguf, path), SilentReporter())


@pytest.mark.usefixtures("fresh_cache")
def test_a_file_cannot_write_outside_its_folder(gguf: Path, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.zip"
    shutil.copy(packed, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../../escaped", b"x")
    with pytest.raises(DriftError, match="would lie outside"):
        run_drift(request(gguf, path), SilentReporter())
    assert not list(tmp_path.rglob("escaped"))


def test_every_flipped_byte_is_found_or_harmless(packed: Path, tmp_path: Path) -> None:
    """zipfile raises half a dozen kinds of error; none may be taken for a defect of ours."""
    path = tmp_path / "base.zip"
    whole = packed.read_bytes()
    n_found = 0
    for offset in range(0, len(whole), len(whole) // 300):
        data = bytearray(whole)
        data[offset] ^= 0xFF
        path.write_bytes(data)
        try:
            kept.read_packed_record(path)
        except DriftError:
            n_found += 1
    assert n_found > 250


@pytest.mark.usefixtures("fresh_cache")
def test_an_incomplete_file_is_completed_from_the_cache(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if not name.startswith("traces/"):
                new.writestr(name, old.read(name))
    make_baseline(request(None, tmp_path / "whole.zip"), SilentReporter())
    make_baseline(request(None, path), SilentReporter())
    assert path.read_bytes() == packed.read_bytes()


@pytest.mark.usefixtures("fresh_cache")
def test_the_baseline_is_kept_where_the_artifact_fails(
    gguf: Path, tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeFailureError("llama.cpp ended with signal 9")

    monkeypatch.setattr(Measurement, "token_drift", fail)
    path = tmp_path / "base.zip"
    with pytest.raises(RuntimeFailureError, match="signal 9"):
        run_drift(request(gguf, path), SilentReporter())
    assert path.read_bytes() == packed.read_bytes()


def test_an_artifact_that_does_not_run_is_refused_before_the_baseline_answers(
    tmp_path: Path, fresh_cache: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with pytest.raises(RuntimeFailureError):
        run_drift(request(broken, None), SilentReporter())
    assert not list(fresh_cache.rglob("answers.jsonl"))


@pytest.mark.usefixtures("fresh_cache")
def test_traces_of_other_answers_are_never_used(gguf: Path, packed: Path, tmp_path: Path) -> None:
    """The cache has other answers of the same length than the file: the traces must be its own."""
    record = kept.read_packed_record(packed)
    folder = kept.baseline_folder(record.identity)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(packed) as archive:
        lines = archive.read("answers.jsonl").splitlines()
    changed = []
    for line in lines:
        fields = json.loads(line)
        fields["token_ids"] = [(token + 7) % 500 for token in fields["token_ids"]]
        changed.append(json.dumps(fields))
    (folder / "answers.jsonl").write_text("\n".join(changed) + "\n")
    (result,) = run_drift(request(gguf, packed), SilentReporter())
    assert result.report.tokens is not None
    assert result.report.tokens.kl_mean_nats < 1e-5


@pytest.mark.usefixtures("fresh_cache")
def test_a_branch_is_looked_up(
    gguf: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    path = tmp_path / "base.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "baseline.json":
                fields = json.loads(data)
                fields["identity"] |= {"model": "org/m", "revision": commit, "content_sha256": None}
                data = json.dumps(fields).encode()
            new.writestr(name, data)
    asked = request(gguf, path, baseline="org/m")
    monkeypatch.setattr(finding, "resolve_commit", lambda _id, name: {"main": commit}.get(name, ""))
    for revision in (None, commit, "main"):
        (result,) = run_drift(dataclasses.replace(asked, revision=revision), SilentReporter())
        assert result.report.baseline.revision == commit
    with pytest.raises(DriftError, match="another baseline: revision"):
        run_drift(dataclasses.replace(asked, revision="other"), SilentReporter())


@pytest.mark.usefixtures("fresh_cache")
def test_work_is_not_dropped_before_its_result_is_written(
    gguf: Path, packed: Path, fresh_cache: Path
) -> None:
    def full(_results: object) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run_drift(request(gguf, packed), SilentReporter(), full)
    (folder,) = (fresh_cache / "runs").glob("*")
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 12
    said = Said()
    run_drift(request(gguf, packed), said)
    assert any("12 answers of an interrupted run" in text for text in said.infos)
    assert not folder.exists()


@pytest.mark.usefixtures("fresh_cache")
def test_an_artifact_that_dies_midway_goes_on(
    gguf: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run_drift(request(gguf, packed), SilentReporter())
    generate = LlamaCpp.generate

    def dying(self: LlamaCpp, prompts: Any, *, on_finished: Any, **options: Any) -> Any:
        def stop_after_five(index: int, made: Any) -> None:
            if index >= 5:
                raise RuntimeFailureError("llama.cpp ended with signal 9")
            on_finished(index, made)

        return generate(self, prompts, on_finished=stop_after_five, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaCpp, "generate", dying)
        with pytest.raises(RuntimeFailureError, match="signal 9"):
            run_drift(request(gguf, packed), SilentReporter())
    said = Said()
    (result,) = run_drift(request(gguf, packed), said)
    assert any("answers of an interrupted run" in text for text in said.infos)
    assert result.report.accuracy == whole.report.accuracy
    assert result.report.tokens == whole.report.tokens


def test_an_interrupted_measurement_goes_on_where_it_was(
    gguf: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime dies after some answers; the next run asks for the others only."""
    from tightfit.pipeline.drift import answering

    asked: list[int] = []
    unchanged = answering.missing

    def noted(*arguments: object) -> list[tuple[int, int]]:
        wanted = unchanged(*arguments)
        asked.append(len(wanted))
        return wanted

    monkeypatch.setattr(baseline, "missing", noted)

    class Dying(original.LlamaCpp):
        def generate(self, prompts: object, *, on_finished: object, **options: object) -> object:
            finished = []

            def count(index: int, made: object) -> None:
                if len(finished) == 5:
                    raise RuntimeFailureError("llama.cpp ended with signal 9")
                finished.append(index)
                on_finished(index, made)

            return super().generate(prompts, on_finished=count, **options)

    with monkeypatch.context() as patch:
        patch.setattr(original, "LlamaCpp", Dying)
        with pytest.raises(RuntimeFailureError, match="signal 9"):
            run_drift(request(gguf, None), SilentReporter())
    (result,) = run_drift(request(gguf, None), SilentReporter())
    assert list(dict.fromkeys(asked))[:2] == [12, 7]
    monkeypatch.setenv("TIGHTFIT_CACHE", str(fresh_cache / "other"))
    (whole,) = run_drift(request(gguf, None), SilentReporter())
    assert json.dumps(result.report.baseline_grades) == json.dumps(whole.report.baseline_grades)
    assert not list((fresh_cache / "runs").glob("*"))
