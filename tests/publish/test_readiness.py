"""What may be published, and what each lack is called."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import card_manifests, drift_reports
from support.publishable import publishable
from support.reporters import Notes

from tightfit.drift.gate import Outcome
from tightfit.drift.report import to_fields
from tightfit.errors import PublishError
from tightfit.export.manifest import Artifact, Manifest
from tightfit.publish.readiness import check_ready

Change = Callable[[Artifact], dict[str, Any]]


def changed(manifest: Manifest, change: Change) -> Manifest:
    first, *others = manifest.artifacts
    return dataclasses.replace(
        manifest, artifacts=(dataclasses.replace(first, **change(first)), *others)
    )


def test_verified_measured_and_unchanged_is_ready(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx"))
    assert check_ready(tmp_path, manifest).problems == ()


def gated(outcome: Outcome) -> Change:
    def change(artifact: Artifact) -> dict[str, Any]:
        fields = json.loads(json.dumps(to_fields(drift_reports.report(outcome))))
        assert artifact.drift is not None
        return {"drift": {**fields, "artifact": artifact.drift["artifact"]}}

    return change


def measured_as(**facts: Any) -> Change:
    def change(artifact: Artifact) -> dict[str, Any]:
        assert artifact.drift is not None
        return {"drift": {**artifact.drift, "artifact": {**artifact.drift["artifact"], **facts}}}

    return change


def against(model: str, revision: str) -> Change:
    def change(artifact: Artifact) -> dict[str, Any]:
        assert artifact.drift is not None
        baseline = {**artifact.drift["baseline"], "id": model, "revision": revision}
        return {"drift": {**artifact.drift, "baseline": baseline}}

    return change


LACKS: dict[str, tuple[Change, str]] = {
    "not verified": (lambda _: {"verification": None}, "gguf: it was not verified"),
    "inexact": (
        lambda _: {
            "verification": dataclasses.replace(card_manifests.verification(exact=1), tensors=2)
        },
        "gguf: the verification failed: 1 of 2 tensors",
    ),
    "parity": (
        lambda _: {
            "verification": dataclasses.replace(
                card_manifests.verification(passed=False), tensors=2, exact_tensors=2
            )
        },
        "gguf: the verification failed: logits of llama.cpp",
    ),
    "verified another": (
        lambda _: {"verification": card_manifests.verification()},
        "gguf: the verification is stale: of 339 tensors, and it has 2",
    ),
    "not measured": (lambda _: {"drift": None}, "gguf: its drift was not measured"),
    "measured another file": (measured_as(sha256="ab" * 32), "gguf: the drift is stale"),
    "measured no hash": (measured_as(sha256=None), "no SHA-256"),
    "measured other weights": (measured_as(weights_sha256="00" * 32), "gguf: the drift is stale"),
    "measured against another": (
        against("someone/quite-another", "c" * 40),
        "gguf: the drift was measured against someone/quite-another at revision ccc",
    ),
    "measured another format": (measured_as(format="onnx"), "gguf: the drift is stale"),
    "failed": (gated(Outcome.FAIL), "gguf: the drift gate failed: accuracy drop +3.12 points"),
    "inconclusive": (
        gated(Outcome.INCONCLUSIVE),
        "gguf: the drift gate is inconclusive: accuracy drop +3.12 points",
    ),
}


@pytest.mark.parametrize("lack", LACKS)
def test_each_lack_is_refused_unless_allowed(tmp_path: Path, lack: str) -> None:
    change, said = LACKS[lack]
    manifest = changed(publishable(tmp_path), change)
    with pytest.raises(PublishError) as refused:
        check_ready(tmp_path, manifest)
    assert said in refused.value.problem
    assert "1 problem" in refused.value.problem
    assert "--allow-unverified" in refused.value.hint
    (problem,) = check_ready(tmp_path, manifest, allow_unverified=True).problems
    assert said in problem


@pytest.mark.parametrize("drift", [{"schema_version": 2}, {"schema_version": 1}, {}])
def test_a_report_that_cannot_be_read_is_never_published(
    tmp_path: Path, drift: dict[str, Any]
) -> None:
    manifest = changed(publishable(tmp_path), lambda _: {"drift": drift})
    with pytest.raises(PublishError, match="gguf: the drift report in the manifest"):
        check_ready(tmp_path, manifest, allow_unverified=True)


def test_all_problems_of_all_artifacts_are_said_at_once(tmp_path: Path) -> None:
    manifest = publishable(tmp_path, ("gguf", "onnx"))
    first, second = manifest.artifacts
    manifest = dataclasses.replace(
        manifest,
        artifacts=(
            dataclasses.replace(first, verification=None, drift=None),
            dataclasses.replace(second, drift=None),
        ),
    )
    with pytest.raises(PublishError) as refused:
        check_ready(tmp_path, manifest)
    assert refused.value.problem.splitlines() == [
        f"{tmp_path} is not ready to be published: 3 problems",
        "  gguf: it was not verified",
        "  gguf: its drift was not measured",
        "  onnx: its drift was not measured",
    ]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("allow_unverified", [False, True])
def test_changed_files_are_never_published(tmp_path: Path, allow_unverified: bool) -> None:
    manifest = changed(publishable(tmp_path, ("gguf", "onnx")), lambda _: {"drift": None})
    gguf, onnx = manifest.artifacts
    flip_a_byte(tmp_path / gguf.files[0].name)
    (tmp_path / onnx.files[0].name).unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PublishError) as refused:
        check_ready(tmp_path, manifest, allow_unverified=allow_unverified)
    problem = refused.value.problem
    assert "4 problems" in problem
    assert f"{gguf.files[0].name} is not the file that was exported: its SHA-256" in problem
    assert f"{onnx.files[0].name} is missing" in problem
    assert "config.json is not the file that was exported: 2 bytes" in problem
    assert "gguf: its drift was not measured" in problem


def test_every_listed_file_is_read(tmp_path: Path) -> None:
    """Whichever file is changed, it is found."""
    manifest = publishable(tmp_path, ("gptq", "awq"))
    for record in manifest.files:
        path = tmp_path / record.name
        before = path.read_bytes()
        flip_a_byte(path)
        with pytest.raises(PublishError, match=f"{record.name} is not the file"):
            check_ready(tmp_path, manifest, allow_unverified=True, reporter=Notes())
        path.write_bytes(before)
    assert check_ready(tmp_path, manifest).problems == ()
