"""Export, verify, publish; and for a stranger: download, compare byte by byte, verify again."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import snapshot_download
from support import card_manifests, drift_reports
from support.checkpoints import make_checkpoint
from support.hub_client import use_hub
from support.hub_server import TOKEN, serve_hub
from support.hub_state import Hub
from support.publishable import REPO

from tightfit.cli.main import run
from tightfit.export.manifest import Artifact, InputRecord, read_manifest, write_manifest

HUB_FILES = {".gitattributes"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("TIGHTFIT_CACHE", str(tmp_path / "cache"))
    with serve_hub() as hub:
        use_hub(monkeypatch, hub, tmp_path / "home", TOKEN)
        yield hub


def command(*words: str | Path) -> list[str]:
    return [str(word) for word in words]


@pytest.mark.parametrize(
    "formats",
    [
        ("gguf", "compressed-tensors"),
        # gptqmodel takes seconds to look at each checkpoint.
        pytest.param(("gptq", "awq", "compressed-tensors"), marks=pytest.mark.slow),
    ],
)
def test_what_was_exported_comes_back_whole(
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    formats: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    model = make_checkpoint(tmp_path / "model", "qwen2", hidden=64)
    export = command("export", model, "--target", "rtx3060-8gb", "-o", out)
    options = command("--format", ",".join(formats), "--scheme", "int4-g32")
    publish = command("publish", out, "--repo", REPO, "--tag", "v1", "--json")
    assert run([*export, *options, "--calib", "none", "--method", "rtn"]) == 0

    # Nothing is published that was not verified and measured.
    assert run(publish) == 1
    assert run(command("verify", out)) == 0
    assert run(publish) == 1
    assert f"{formats[0]}: its drift was not measured" in capsys.readouterr().err
    assert hub.requests == []
    measure(out)
    before = contents(out)
    assert run(publish) == 0
    assert contents(out) == before

    document = json.loads(capsys.readouterr().out)
    (_, commit) = hub.repos[REPO].commits
    assert (document["commit"], document["visibility"]) == (commit.oid, "private")
    fresh = Path(snapshot_download(REPO, revision="v1", local_dir=tmp_path / "fresh"))
    published = contents(fresh)
    manifest = read_manifest(fresh)
    assert {path: published[path] for path in before} == before
    assert set(before) == {record.name for record in manifest.files} | {"tightfit.json"}
    assert set(published) - set(before) - HUB_FILES == {
        file["path"] for file in document["files"]
    } - set(before)
    for record in manifest.files:
        assert hashlib.sha256(published[record.name]).hexdigest() == record.sha256
    front, _, text = published["README.md"].decode().removeprefix("---\n").partition("\n---\n")
    fields = yaml.safe_load(front)
    assert fields["quantized_by"] == "someone"
    assert {"tightfit", *formats} <= set(fields["tags"])
    for made in manifest.artifacts:
        assert made.files[0].name in text

    assert run(command("verify", f"hub:{REPO}", "--revision", "v1", "--json")) == 0
    verified = json.loads(capsys.readouterr().out)
    assert (verified["commit"], verified["passed"]) == (commit.oid, True)
    assert [made["format"] for made in verified["artifacts"]] == list(formats)
    # Whoever has no token sees nothing of it.
    monkeypatch.delenv("HF_TOKEN")
    assert run(command("verify", f"hub:{REPO}")) == 1
    assert "private" in capsys.readouterr().err


def measure(folder: Path) -> None:
    """Give each artifact a drift report, of its own files, that passed."""
    manifest = read_manifest(folder)
    artifacts = tuple(with_drift(made, manifest.input) for made in manifest.artifacts)
    write_manifest(folder, dataclasses.replace(manifest, artifacts=artifacts))


def with_drift(made: Artifact, original: InputRecord) -> Artifact:
    report = card_manifests.math_report()
    size = sum(file.size_bytes for file in made.files)
    facts = dataclasses.replace(drift_reports.report().artifact, size_bytes=size)
    baseline = dataclasses.replace(report.baseline, id=original.id, revision=original.revision)
    report = dataclasses.replace(report, artifact=facts, baseline=baseline)
    return dataclasses.replace(
        made, drift=card_manifests.drift_of(report, made.format, made.files[0], made.weights_sha256)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files by path; the client's own notes of a download are none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if ".cache/" not in name}
