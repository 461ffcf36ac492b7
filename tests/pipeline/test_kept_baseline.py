"""A kept baseline: the big model never runs twice, and a wrong or damaged one is told."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from support.tiny_r1 import TINY_R1, tiny_r1_gguf

from tightfit.drift.measures import versions
from tightfit.errors import DriftError, RuntimeFailureError
from tightfit.pipeline.drift import (
    DriftRequest,
    ProtocolChoice,
    baseline,
    make_baseline,
    original,
    run_drift,
)
from tightfit.reporter import SilentReporter

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
        member = {"record": "baseline.json", "journal": "answers.jsonl", "trace": "traces/00.npz"}
        with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                is_hit = name == member[damage]
                new.writestr(name, b"nonsense\n" if is_hit else old.read(name))
    with pytest.raises(DriftError, match=r"no kept baseline|damaged|is no answer"):
        run_drift(request(gguf, path), SilentReporter())


@pytest.mark.usefixtures("fresh_cache")
def test_a_file_cannot_write_outside_its_folder(gguf: Path, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "base.zip"
    shutil.copy(packed, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../../escaped", b"x")
    run_drift(request(gguf, path), SilentReporter())
    assert not list(tmp_path.rglob("escaped"))


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
    assert asked[:2] == [12, 7]
    monkeypatch.setenv("TIGHTFIT_CACHE", str(fresh_cache / "other"))
    (whole,) = run_drift(request(gguf, None), SilentReporter())
    assert json.dumps(result.report.baseline_grades) == json.dumps(whole.report.baseline_grades)
    assert not list((fresh_cache / "runs").glob("*"))
