"""`tightfit.json` from a stranger: whatever it says, nothing outside its folder is touched."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile import FUZZ, MESSAGE_CHARACTERS, answer, damaged_json, time_limit
from support.publishable import publishable

from tightfit.errors import ArtifactError
from tightfit.export.manifest import (
    MANIFEST_NAME,
    is_plain_path,
    read_manifest,
    stored_file,
    write_manifest,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "out"
    publishable(folder, ("gguf", "onnx", "tensorrt"))
    return folder


def with_manifest(folder: Path, text: str | bytes) -> Path:
    (folder / MANIFEST_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def refusal(folder: Path) -> str:
    with time_limit(), pytest.raises(ArtifactError) as caught:
        read_manifest(folder)
    assert len(str(caught.value)) < MESSAGE_CHARACTERS
    return caught.value.problem


def fields_of(whole: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((whole / MANIFEST_NAME).read_text())
    return fields


BAD_PATHS = [
    *("../x", "..", ".", "", "a/../../x", "a/..", "a/./b", "a//b", "a/", "/etc/passwd", "//host/x"),
    *("..\\x", "a\\b", "C:x", "C:/x", "x:stream", "\0", "a\0b", "a\nb", "\x1b[2J", "x" * 256),
]
GOOD_PATHS = ["a", "a.json", "a/b c/d-1.gguf", ".eval_results/x.yaml", "...", "größe.json", "a..b"]


@pytest.mark.parametrize("name", BAD_PATHS)
@pytest.mark.parametrize("place", ["companions", "files", "input", "engine"])
def test_paths_that_leave_the_folder(name: str, place: str, whole: Path, tmp_path: Path) -> None:
    fields = fields_of(whole)
    engine = fields["artifacts"][2]["engines"][0]
    match place:
        case "companions":
            fields["companions"][0]["name"] = name
        case "files":
            fields["artifacts"][0]["files"][0]["name"] = name
        case "input":
            fields["input"]["files"][0]["name"] = name
        case "engine":
            files = fields["artifacts"][2]["files"]
            (file,) = (of for of in files if of["name"] == engine["file"])
            file["name"] = engine["file"] = name
    assert "tightfit.json lists" in refusal(with_manifest(tmp_path, json.dumps(fields)))


@pytest.mark.parametrize("name", GOOD_PATHS)
def test_plain_paths(name: str, whole: Path, tmp_path: Path) -> None:
    fields = fields_of(whole)
    fields["companions"][0]["name"] = name
    assert read_manifest(with_manifest(tmp_path, json.dumps(fields))).companions[0].name == name


@settings(FUZZ, max_examples=1000)
@given(st.text(st.sampled_from("./\\:ab\0\n ~é"), max_size=8))
def test_a_plain_path_stays_in_its_folder(name: str) -> None:
    folder = Path("/somewhere/out")
    if is_plain_path(name):
        # The oracle is the system's own resolution, by text alone.
        inside = Path(os.path.normpath(folder / name))
        assert inside.is_relative_to(folder)
        assert inside != folder
        assert inside.relative_to(folder).as_posix() == name


def artifact(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda fields: fields["artifacts"][number].update(changes)


def companion(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda fields: fields["companions"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (companion(sha256="ab"), "no SHA-256"),
        (companion(sha256="AB" * 32), "no SHA-256"),
        (companion(sha256="g" * 64), "no SHA-256"),
        (companion(sha256="ab" * 32 + "\n"), "no SHA-256"),
        (companion(size_bytes=-1), "no size"),
        (companion(size_bytes=1.5), "expected int"),
        (companion(size_bytes=True), "expected int"),
        (companion(more=1), "unknown field 'more'"),
        (artifact(0, weights_sha256=""), "no SHA-256"),
        (artifact(0, format="onnx"), "formats"),
        (artifact(0, format="pickle"), "formats"),
        (artifact(0, files=[]), "lists no files"),
        (artifact(2, files=[{"name": "a", "size_bytes": 1, "sha256": "a" * 64}]), "an engine"),
        (lambda fields: fields.update(artifacts=[]), "lists no files"),
        (lambda fields: fields["artifacts"][0]["tensors"][0].update(sha256=""), "no SHA-256"),
        (
            lambda fields: fields["companions"].append(
                {**fields["companions"][0], "size_bytes": 7}
            ),
            "with two different contents",
        ),
        (lambda fields: fields.update(schema_version=3), "schema version 3"),
        (lambda fields: fields.update(schema_version="x" * 10**6), "schema version 'xxx"),
        (lambda fields: fields.update(schema_version=True), "schema version True"),
        (lambda fields: fields.update({"y" * 10**6: 1}), "unknown field 'yyy"),
        (lambda fields: fields["companions"][0].update(name=["x" * 10**6]), "expected str"),
    ],
)
def test_what_an_export_never_writes(
    edit: Callable[[dict[str, Any]], object], sentence: str, whole: Path, tmp_path: Path
) -> None:
    fields = fields_of(whole)
    edit(fields)
    assert sentence in refusal(with_manifest(tmp_path, json.dumps(fields)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[" * 10**6, "nested deeper"),
        (b'{"schema_version": 4, "schema_version": 4}', "'schema_version' is there twice"),
        (b'{"schema_version": NaN}', "is nan"),
        (b"[]", "damaged"),
        (b"4", "damaged"),
        (b"\xff\xfe", "utf-8"),
        (b"", "damaged"),
    ],
)
def test_what_is_no_manifest(text: bytes, sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(with_manifest(tmp_path, text))


def test_a_manifest_without_end(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_NAME).open("wb") as stream:
        stream.truncate(1 << 40)
    assert "1099511627776 bytes" in refusal(tmp_path)


def test_the_same_record_in_two_formats_is_one_file(whole: Path, tmp_path: Path) -> None:
    manifest = read_manifest(whole)
    write_manifest(tmp_path, manifest)
    names = [record.name for record in read_manifest(tmp_path).files]
    assert len(names) == len(set(names))
    fields = fields_of(whole)
    fields["artifacts"][0]["files"].append(fields["companions"][0])
    again = read_manifest(with_manifest(tmp_path, json.dumps(fields)))
    assert [record.name for record in again.files] == names


def test_links_out_of_the_folder(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "out")
    record = read_manifest(folder).companions[0]
    path = folder / record.name
    assert stored_file(folder, record) == path
    moved = path.rename(folder / "moved")
    path.symlink_to("moved")
    assert stored_file(folder, record) == path
    path.unlink()
    path.symlink_to(shutil.move(moved, tmp_path / "secret"))
    with pytest.raises(ArtifactError, match="is a link to"):
        stored_file(folder, record)


def test_manifests_with_values_exchanged(whole: Path, tmp_path: Path) -> None:
    fields = fields_of(whole)
    # The reports are free-form for the manifest and would take most of the changes.
    for made in fields["artifacts"]:
        made["drift"] = {"a": [1]}

    @FUZZ
    @given(text=damaged_json(fields))
    def fuzz(text: str) -> None:
        manifest = answer(lambda: read_manifest(with_manifest(tmp_path, text)))
        if manifest is None:
            return
        for record in manifest.files:
            assert (tmp_path / record.name).resolve().is_relative_to(tmp_path.resolve())
            assert len(bytes.fromhex(record.sha256)) == 32
            assert record.size_bytes >= 0
        write_manifest(tmp_path, manifest)
        assert read_manifest(tmp_path) == manifest

    fuzz()
