"""`tightfit verify hub:OWNER/NAME`: the real client against a server of ours."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
from support.checkpoints import make_checkpoint
from support.hub import FakeHub, serve

from tightfit.cli.main import run
from tightfit.errors import ArtifactError
from tightfit.export.manifest import MANIFEST_NAME, read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.verify.remote import download_artifact, verify_published

COMMIT = "c0ffee" + "0" * 34
REPO = "someone/small-GGUF"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    model = make_checkpoint(root / "model", "qwen2", hidden=64)
    request = ExportRequest(
        model=str(model),
        target="rtx3060-8gb",
        output=root / "out",
        scheme="q8_0",
        method=Method(algorithm=Algorithm.RTN),
    )
    run_export(request, SilentReporter())
    (root / "out" / "README.md").write_text("# A card\n")
    return root / "out"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "repo")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as server:
        repo = server.add(REPO, folder, commit=COMMIT)
        for record in read_manifest(folder).artifacts[0].files:
            repo.lfs[record.name] = record.sha256
        # The client reads its environment when it is imported; here it already is.
        set_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("TIGHTFIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield server


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(tmp_path: Path, repo: str = REPO, revision: str | None = None) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        download_artifact(repo, revision, tmp_path / "cache", SilentReporter())
    assert caught.value.hint
    return caught.value


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST_NAME
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def gguf_of(folder: Path) -> Path:
    (path,) = folder.glob("*.gguf")
    return path


def test_what_was_published_is_verified_and_nothing_else_is_downloaded(
    hub: FakeHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    before = {path: path.read_bytes() for path in folder.iterdir()}

    assert run(["verify", f"hub:{REPO}", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["passed"]
    assert (document["repo"], document["commit"]) == (REPO, COMMIT)
    assert document["not_listed"] == ["README.md", "modeling_evil.py", "pytorch_model.bin"]
    assert document["artifacts"][0]["verification"]["parity"]["passed"]
    listed = {record.name for record in read_manifest(folder).files}
    assert hub.downloaded() == listed | {MANIFEST_NAME}
    kept = Path(document["folder"])
    assert {path.name for path in kept.iterdir()} == listed | {MANIFEST_NAME, ".cache"}
    for name in listed:
        assert (kept / name).read_bytes() == before[folder / name]
    # The outcome is in the copy's manifest, and the client's own copy is as it was published.
    assert read_manifest(kept).artifacts[0].verification is not None
    (cached,) = (tmp_path / "hub").glob(f"models--*/snapshots/{COMMIT}/{MANIFEST_NAME}")
    assert cached.read_bytes() == before[folder / MANIFEST_NAME]

    asked = len(hub.requests)
    assert run(["verify", f"hub:{REPO}"]) == 0
    again = capsys.readouterr().out
    assert f"{REPO} at commit {COMMIT}" in again
    assert "README.md, modeling_evil.py, pytorch_model.bin" in again
    assert not [path for method, path in hub.requests[asked:] if method == "GET" and "gguf" in path]


def test_a_large_file_that_differs_is_told_before_it_is_downloaded(
    hub: FakeHub, tmp_path: Path
) -> None:
    (name,) = hub.repos[REPO].lfs
    hub.repos[REPO].lfs[name] = "ab" * 32
    error = refused(tmp_path)
    assert f"{name} is not the file that was exported" in error.problem
    assert "ab" * 32 in error.problem
    assert hub.downloaded() == {MANIFEST_NAME}


def test_a_file_of_another_size_is_told_before_it_is_downloaded(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    with (folder / "config.json").open("a") as stream:
        stream.write(" ")
    assert "config.json is not the file" in refused(tmp_path).problem
    assert hub.downloaded() == {MANIFEST_NAME}


def test_a_changed_file_is_found_and_the_repaired_one_downloaded(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(whole[:-2] + b"}\n"[::-1])

    def verify() -> Any:
        return verify_published(REPO, None, tmp_path / "cache", SilentReporter())

    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        verify()
    copies = list((tmp_path / "cache").glob(f"published/*/{COMMIT}/config.json"))
    assert copies == []
    (folder / "config.json").write_bytes(whole)
    assert verify()[1].artifacts[0].verification.passed


def test_a_damaged_tensor_fails(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    """Hashes of files are those of the manifest: only the tensors' tell that they were replaced."""
    edit_manifest(
        folder, lambda fields: fields["artifacts"][0]["tensors"][3].update(sha256="0" * 64)
    )
    with pytest.raises(ArtifactError, match=r"1 of .* tensors .* not the quantizer's numbers"):
        verify_published(REPO, None, tmp_path / "cache", SilentReporter())


def test_a_file_that_is_missing(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    name = gguf_of(folder).name
    gguf_of(folder).unlink()
    assert f"lacks {name}" in refused(tmp_path).problem


def test_a_repository_of_another_tool(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    error = refused(tmp_path)
    assert "holds no tightfit.json" in error.problem
    assert "another tool" in error.hint
    assert hub.downloaded() == set()


@pytest.mark.parametrize(
    "name", ["../../../../.bashrc", "/etc/passwd", "a\\..\\b", "C:config.json", "a//b"]
)
def test_a_manifest_that_leaves_the_folder(
    name: str, hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    edit_manifest(folder, lambda fields: fields["companions"][0].update(name=name))
    error = refused(tmp_path)
    assert f"lists {name!r}" in error.problem
    assert "trust" in error.hint
    assert hub.downloaded() == {MANIFEST_NAME}


def test_a_pickle_is_never_downloaded(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    edit_manifest(folder, lambda fields: fields["companions"][0].update(name="pytorch_model.bin"))
    assert "which can hold a pickle" in refused(tmp_path).problem
    assert hub.downloaded() == {MANIFEST_NAME}


def test_names_with_pattern_characters_are_names(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "config.json").rename(folder / "[c]*.json")
    (folder / "c.json").write_text("not listed")
    edit_manifest(
        folder,
        lambda fields: next(
            of for of in fields["companions"] if of["name"] == "config.json"
        ).update(name="[c]*.json"),
    )
    published = download_artifact(REPO, None, tmp_path / "cache", SilentReporter())
    assert (published.folder / "[c]*.json").is_file()
    assert not (published.folder / "c.json").exists()


def test_a_repository_that_is_not_there_private_or_gated(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such model repository" in refused(tmp_path, "nobody/nothing").problem
    hub.repos[REPO].token = "hf_secret"
    private = refused(tmp_path)
    assert "private" in private.problem
    assert "HF_TOKEN" in private.hint
    hub.repos[REPO].gated = True
    assert "gated" in refused(tmp_path).problem
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download_artifact(REPO, None, tmp_path / "cache", SilentReporter()).commit == COMMIT


def test_revisions(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub.add(REPO, folder, commit="b" * 40, branch="v1")
    found = download_artifact(REPO, "v1", tmp_path / "cache", SilentReporter())
    assert found.commit == "b" * 40
    assert "'v99'" in refused(tmp_path, revision="v99").problem


@pytest.mark.parametrize("repo", ["", "one", "../x", "a/b/c", "a b/c", "a/" + "x" * 200])
def test_what_names_no_repository(repo: str, hub: FakeHub, tmp_path: Path) -> None:
    assert "OWNER/NAME" in str(refused(tmp_path, repo))
    assert hub.requests == []


def test_without_a_connection(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert "cannot be reached" in refused(tmp_path).problem
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused(tmp_path).problem


def test_a_revision_goes_with_the_hub_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(tmp_path), "--revision", "v1"]) == 2
    assert "a revision goes with hub:OWNER/NAME" in capsys.readouterr().err
