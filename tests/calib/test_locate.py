from pathlib import Path

import pytest

import tightfit.calib.locate as locate
from tightfit.calib.locate import ModelSource, locate_model
from tightfit.errors import CheckpointError, UsageError

COMMIT = "d" * 40


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the Hub."""
    requests: list[tuple[str, str | None]] = []

    def download(hub_id: str, revision: str | None) -> tuple[Path, str]:
        requests.append((hub_id, revision))
        return Path("/cache") / hub_id, COMMIT

    monkeypatch.setattr(locate, "download_snapshot", download)
    return requests


def test_nothing_and_its_name_are_the_embedded_model(asked: list[object]) -> None:
    assert locate_model(None) == locate_model("tiny-r1")
    source = locate_model(None)
    assert (source.id, source.revision) == ("tiny-r1", None)
    assert (source.path / "config.json").is_file()
    assert not asked


def test_a_folder_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[object]
) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    assert locate_model(str(folder)) == ModelSource(path=folder, id="name")
    monkeypatch.chdir(tmp_path)
    assert locate_model("owner/name").path == Path("owner/name")
    assert locate_model("./owner/name").id == "name"
    monkeypatch.chdir(folder)
    assert locate_model(".").id == "name"
    assert not asked


@pytest.mark.parametrize("path", ["./missing", "../missing", "/nowhere/at-all", "~/no-such-folder"])
def test_a_missing_path_never_reaches_the_hub(path: str, asked: list[object]) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        locate_model(path)
    assert not asked


def test_a_file_is_not_a_model(tmp_path: Path, asked: list[object]) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        locate_model(str(file))


def test_hub_ids_and_short_names(asked: list[tuple[str, str | None]]) -> None:
    source = locate_model("owner/name", revision="v2")
    assert (source.id, source.revision) == ("owner/name", COMMIT)
    assert locate_model("r1-distill-qwen-1.5b").id == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    assert asked == [
        ("owner/name", "v2"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", None),
    ]


@pytest.mark.parametrize("name", ["r1-distil-qwen-7b", "a/b/c", "owner/na me", ""])
def test_what_is_neither_is_refused_with_the_names(name: str, asked: list[object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate_model(name)
    assert "r1-distill-qwen-7b" in caught.value.allowed
    assert not asked


def test_a_revision_needs_the_hub(tmp_path: Path, asked: list[object]) -> None:
    for model in (None, "tiny-r1", str(tmp_path)):
        with pytest.raises(UsageError, match="--revision v1"):
            locate_model(model, revision="v1")
