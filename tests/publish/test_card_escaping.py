"""Whatever names and sentences a manifest holds, the card shows them and obeys none of them."""

import dataclasses
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support import card_manifests as cards
from support import drift_reports
from support.card_reading import data_of, rendered, shown_text

from tightfit.export.manifest import FileRecord
from tightfit.publish.card.card import make_card

HOSTILE = [
    "](https://evil.example) [x",
    "<img src=x onerror=alert(1)>",
    "`` ` ```\n```sh\nrm -rf ~\n```",
    "a | b | c",
    "{{ 7 * 7 }}{% for x in y %}",
    "---\nlicense: evil\n---\n# Title",
    "*a* _b_ ~~c~~ $$d$$ # e\n\n## f",
    "&lt;b&gt; \\",
    "$(rm -rf ~); echo 'x' \"y\"",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_shows_as_itself(tmp_path: Path, text: str) -> None:
    plain = cards.manifest(tmp_path, ("gguf", "onnx"), report=drift_reports.report())
    expected_tags = re.findall(r"<(/?\w+)", rendered(make_card(plain, tmp_path, cards.REPO)))
    report = drift_reports.report()
    report = dataclasses.replace(
        report,
        baseline=dataclasses.replace(report.baseline, id=text),
        runtime=dataclasses.replace(report.runtime, device=text, label=text),
    )
    manifest = cards.manifest(tmp_path, ("gguf", "onnx"), model=text, revision=None, report=report)
    manifest = dataclasses.replace(
        manifest,
        target=text,
        versions=manifest.versions | {"evil": text},
        calibration=dataclasses.replace(manifest.calibration, source=text),
        artifacts=tuple(
            dataclasses.replace(
                made,
                scheme=dataclasses.replace(made.scheme, name=text, reason=text),
                files=(*made.files, FileRecord(name=text, size_bytes=1, sha256="00" * 32)),
            )
            for made in manifest.artifacts
        ),
    )
    card = make_card(manifest, tmp_path, cards.REPO, unverified=(text,))
    data = data_of(card)
    assert set(data) == {"pipeline_tag", "quantized_by", "tags", "model-index"}
    assert text in ModelCard(card).data.eval_results[0].metric_name
    assert data["tags"] == ["tightfit", "gguf", "onnx", "4-bit"]
    html = rendered(card)
    assert "evil.example" not in "".join(re.findall(r"<a [^>]*>", html))
    assert set(re.findall(r"<(/?\w+)", html)) <= {*expected_tags, "blockquote", "/blockquote"}
    shown = shown_text(card)
    assert shown.count(re.sub(r"\s+", " ", text).strip()) >= 8
