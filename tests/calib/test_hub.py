"""The real Hub client against a server of ours."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
from support.checkpoints import make_checkpoint
from support.hub import FakeHub, serve

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.hub import download_snapshot
from tightfit.calib.locate import locate_model
from tightfit.errors import CheckpointError

OLD, NEW = "a" * 40, "b" * 40
REPO = "somebody/some-model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of a model, the second with files that must not be downloaded."""
    root = tmp_path_factory.mktemp("repos")
    old = make_checkpoint(root / "old", "llama", seed=1, sharded=True, hidden=64)
    new = make_checkpoint(root / "new", "llama", seed=2, hidden=64)
    (new / "pytorch_model.bin").write_bytes(b"pickle")
    (new / "consolidated.safetensors").write_bytes(b"copy")
    (new / "original").mkdir()
    (new / "original" / "params.json").write_text("{}")
    (new / "chat_template.jinja").write_text("{{ messages }}")
    return old, new


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    with serve() as server:
        server.add(REPO, folders[0], commit=OLD, branch="v1")
        server.add(REPO, folders[1], commit=NEW)
        # The client reads its environment when it is imported; here it already is.
        set_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield server


def refused(model: str, revision: str | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        locate_model(model, revision=revision)
    return caught.value


def test_downloads_the_checkpoint_and_nothing_else(
    hub: FakeHub, folders: tuple[Path, Path]
) -> None:
    source = locate_model(REPO)
    assert (source.id, source.revision) == (REPO, NEW)
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert hub.downloaded() == wanted
    checkpoint = open_checkpoint(source)
    local = open_checkpoint(folders[1])
    assert checkpoint.names() == local.names()
    for name in local.names():
        assert checkpoint.load(name).equal(local.load(name))


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_honoured(hub: FakeHub, revision: str) -> None:
    source = locate_model(REPO, revision=revision)
    assert source.revision == OLD
    assert (source.path / "model.safetensors.index.json").is_file()


def test_the_token_is_sent(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].token = "hf_secret"
    assert "private" in str(refused(REPO))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert locate_model(REPO).revision == NEW
    assert "hf_secret" in hub.tokens


def test_a_gated_model_says_where_to_ask(hub: FakeHub) -> None:
    hub.repos[REPO].gated, hub.repos[REPO].token = True, "hf_member"
    error = refused(REPO)
    assert "gated" in error.problem
    assert f"https://huggingface.co/{REPO}" in error.hint


def test_an_unknown_model_and_an_unknown_revision(hub: FakeHub) -> None:
    assert "no such model" in refused("nobody/nothing").problem
    error = refused(REPO, "v99")
    assert "'v99'" in error.problem
    assert "branch" in error.allowed


def test_pickles_are_refused_by_name(hub: FakeHub, folders: tuple[Path, Path]) -> None:
    only_pickle = folders[0].parent / "pickle"
    shutil.copytree(
        folders[1], only_pickle, ignore=lambda *_: ["model.safetensors", "consolidated.safetensors"]
    )
    hub.add("old/pickled", only_pickle, commit="c" * 40)
    error = refused("old/pickled")
    assert "pytorch_model.bin" in error.problem
    assert "pytorch_model.bin" not in hub.downloaded()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "gemma3"}, "not a family"),
        ({"mlp_bias": True}, "'mlp_bias' is true"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "already quantized"),
    ],
)
def test_what_config_json_tells_is_refused_before_the_weights(
    hub: FakeHub, folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    foreign = shutil.copytree(folders[1], tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | change))
    hub.add("some/foreign", foreign, commit="d" * 40)
    assert problem in refused("some/foreign").problem
    assert hub.downloaded() == {"config.json"}


def test_a_cache_without_the_weights_is_told_without_a_connection(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = download_snapshot(REPO, None)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused(REPO).problem


def test_without_a_connection_the_cache_serves_and_the_rest_is_told(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = locate_model(REPO)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert locate_model(REPO) == first
    assert len(hub.requests) == asked
    assert "cannot be reached" in refused("other/model").problem


def test_a_dead_server_is_no_traceback(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert "cannot be reached" in refused(REPO).problem


def test_an_interrupted_download_is_finished_by_the_next(
    hub: FakeHub, folders: tuple[Path, Path]
) -> None:
    folder, _ = download_snapshot(REPO, None)
    lost = folder / "model.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    again, _ = download_snapshot(REPO, None)
    assert lost.read_bytes() == (folders[1] / "model.safetensors").read_bytes()
    assert again == folder


def test_the_environment_is_honoured(hub: FakeHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_from_environment",
    }
    code = (
        "from tightfit.calib.locate import locate_model\n"
        f"print(locate_model({REPO!r}, revision='v1').path)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip().endswith(OLD)
    assert answer.stdout.startswith(str(home))
    assert "hf_from_environment" in hub.tokens
