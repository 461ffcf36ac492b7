"""The list of what is published, and what of a repository it changes."""

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from support.publishable import publishable

from tightfit.errors import PublishError
from tightfit.export.manifest import FileRecord, Manifest
from tightfit.publish.changes import RemoteFile, compare, is_same, listed_files
from tightfit.publish.contents import PublishedFile, list_contents

TEXTS = {"README.md": "# card\n", "params": "{}\n"}


def test_exactly_the_listed_and_the_generated_files(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx"))
    for stray in ("notes.txt", ".env", "onnx/old.onnx", "tightfit.json.part", "README.md"):
        (tmp_path / stray).write_text("not yours")
    files = list_contents(tmp_path, manifest, TEXTS)
    paths = [file.path for file in files]
    assert paths == sorted(
        [
            "tightfit.json",
            "README.md",
            "params",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "DeepSeek-R1-Distill-Qwen-7B-auto-Q4_K_M.gguf",
            "onnx/model.onnx",
            "onnx/model.onnx.data",
            "genai_config.json",
        ]
    )
    for file in files:
        content = TEXTS[file.path].encode() if file.path in TEXTS else None
        expected = content or (tmp_path / file.path).read_bytes()
        assert file.read() == expected
        assert file.size_bytes == len(expected)
        assert file.sha256 == hashlib.sha256(expected).hexdigest()


def test_the_order_does_not_depend_on_the_order_in_the_manifest(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx"))
    backwards = dataclasses.replace(
        manifest, artifacts=manifest.artifacts[::-1], companions=manifest.companions[::-1]
    )
    first, second = (list_contents(tmp_path, each, TEXTS) for each in (manifest, backwards))
    assert [file.path for file in first] == [file.path for file in second]


def test_storage_is_that_of_the_hub(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx", "gptq"))
    storage = {file.path: file.storage for file in list_contents(tmp_path, manifest, TEXTS)}
    lfs = {path for path, kind in storage.items() if kind == "LFS"}
    weights = {file.name for made in manifest.artifacts for file in made.files}
    # The stand-ins begin with a zero byte, which no text holds, those of JSON as well.
    assert lfs == weights
    assert storage["README.md"] == storage["config.json"] == "regular"
    large = PublishedFile(path="tokenizer.json", source=b"{}", size_bytes=10 << 20, sha256="")
    assert large.storage == "regular"
    assert dataclasses.replace(large, size_bytes=(10 << 20) + 1).storage == "LFS"


def listing(manifest: Manifest, name: str) -> Manifest:
    record = FileRecord(name=name, size_bytes=1, sha256="ab" * 32)
    return dataclasses.replace(manifest, companions=(*manifest.companions, record))


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "a\\b",
        "C:/x",
        ".git/config",
        ".cache/x",
        ".gitattributes",
        "sub/.gitignore",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    manifest = publishable(tmp_path)
    with pytest.raises(PublishError, match="cannot be published"):
        list_contents(tmp_path, listing(manifest, name), TEXTS)


def test_links_are_refused_whole_folders_too(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    manifest = publishable(folder, ("gguf", "onnx"))
    (folder / "onnx").rename(elsewhere)
    (folder / "onnx").symlink_to(elsewhere)
    with pytest.raises(PublishError, match="is a link to"):
        list_contents(folder, manifest, TEXTS)
    (folder / "onnx").unlink()
    elsewhere.rename(folder / "onnx")
    config = folder / "config.json"
    config.rename(folder / "real.json")
    config.symlink_to("real.json")
    with pytest.raises(PublishError, match=r"is a link to real\.json"):
        list_contents(folder, manifest, TEXTS)
    # A folder may be reached by a link.
    config.unlink()
    (folder / "real.json").rename(config)
    (tmp_path / "link").symlink_to(folder)
    assert list_contents(tmp_path / "link", manifest, TEXTS)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    manifest = publishable(tmp_path)
    with pytest.raises(PublishError, match=r"two files would be config\.json"):
        list_contents(tmp_path, manifest, {**TEXTS, "config.json": "{}"})


def remote(file: PublishedFile, *, lfs: bool, tmp_path: Path) -> RemoteFile:
    """The file as the Hub would hold it, its id by git itself."""
    path = tmp_path / "blob"
    path.write_bytes(file.read())
    blob_id = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    return RemoteFile(
        size_bytes=file.size_bytes,
        blob_id="0" * 40 if lfs else blob_id,
        sha256=file.sha256 if lfs else None,
    )


def generated(path: str, content: bytes) -> PublishedFile:
    return PublishedFile(
        path=path,
        source=content,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.mark.parametrize("lfs", [False, True])
def test_the_same_content_is_recognized(tmp_path: Path, lfs: bool) -> None:
    file, other = generated("a", b"hello\r\n"), generated("a", b"hellO\r\n")
    there = remote(file, lfs=lfs, tmp_path=tmp_path)
    assert is_same(file, there)
    assert not is_same(other, there)
    assert not is_same(file, dataclasses.replace(there, size_bytes=8))
    assert not is_same(file, None)


def test_only_files_of_the_artifact_before_are_deleted(tmp_path: Path) -> None:
    new = [generated(name, name.encode()) for name in ("kept", "changed", "added", "adopted")]
    old = {
        "kept": remote(new[0], lfs=True, tmp_path=tmp_path),
        "changed": remote(new[0], lfs=True, tmp_path=tmp_path),
        "adopted": remote(new[0], lfs=True, tmp_path=tmp_path),
        **dict.fromkeys(
            ("gone", "mine.txt", ".gitattributes", "sub/gone"),
            RemoteFile(size_bytes=1, blob_id="", sha256=None),
        ),
    }
    before = {"kept", "changed", "gone", "sub/gone", "never-there"}
    changes = compare(new, old, before)
    assert [file.path for file in changes.added] == ["added"]
    assert [file.path for file in changes.replaced] == ["changed", "adopted"]
    assert [file.path for file in changes.unchanged] == ["kept"]
    assert changes.deleted == ("gone", "sub/gone")
    assert changes.left == ("mine.txt",)
    assert not changes.is_empty


def test_nothing_changes_when_all_is_there(tmp_path: Path) -> None:
    files = [generated("a", b"1"), generated("b", b"2")]
    there = {file.path: remote(file, lfs=False, tmp_path=tmp_path) for file in files}
    assert compare(files, there, {"a", "b"}).is_empty


def test_the_manifest_before_may_be_of_any_version(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx"))
    document = json.loads((tmp_path / "tightfit.json").read_text())
    document["schema_version"] = 2
    del document["target"]
    names = {record.name for record in manifest.files}
    assert listed_files(json.dumps(document).encode()) == names
    for damaged in (b"", b"[]", b"{}", b'{"companions": [], "artifacts": [1]}'):
        with pytest.raises(ValueError):  # noqa: PT011
            listed_files(damaged)
