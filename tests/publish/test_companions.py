import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from support import card_manifests as cards

from tightfit.calib.locate import locate_model
from tightfit.calib.models import MODELS
from tightfit.export.manifest import FileRecord, Manifest, hash_file
from tightfit.publish.card.companions import companion_texts

LLAMA = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
OWN_LICENSE = Path(__file__).parents[2] / "LICENSE"


def texts(manifest: Manifest, folder: Path) -> dict[str, str]:
    return dict(companion_texts(manifest, folder, cards.REPO))


def test_ollama_gets_sampling_stop_tokens_and_context(tmp_path: Path) -> None:
    params = json.loads(texts(cards.manifest(tmp_path), tmp_path)["params"])
    # The stop tokens are those of Ollama's own deepseek-r1, which the Hub's conversion uses.
    assert params == {
        "num_ctx": 8192,
        "temperature": 0.6,
        "top_p": 0.95,
        "stop": [
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
        ],
    }


def test_special_tokens_may_be_records_and_the_template_a_file(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    config["eos_token"] = {"content": "<end>", "lstrip": False}
    config["bos_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(template)
    more = (*manifest.companions, hash_file(tmp_path / "chat_template.jinja"))
    manifest = dataclasses.replace(manifest, companions=more)
    params = json.loads(texts(manifest, tmp_path)["params"])
    assert params["stop"] == ["<end>", "<｜User｜>", "<｜Assistant｜>"]


def test_greedy_models_get_no_sampling(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    assert json.loads(texts(manifest, tmp_path)["params"]).keys() == {"num_ctx", "stop"}


@pytest.mark.parametrize("kind", ["split", "onnx", "gptq"])
def test_nothing_is_written_for_ollama_that_it_cannot_pull(tmp_path: Path, kind: str) -> None:
    assert "params" not in texts(cards.manifest(tmp_path, (kind,)), tmp_path)


def test_a_registered_benchmark_is_an_eval_result(tmp_path: Path) -> None:
    report = cards.math_report("gsm8k:n=64,seed=5")
    manifest = cards.manifest(tmp_path, ("gguf", "onnx"), report=report)
    written = texts(manifest, tmp_path)
    (name,) = (path for path in written if path.startswith(".eval_results"))
    assert name == ".eval_results/gsm8k.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(written[name]))
    assert len(entries) == 2
    for entry in entries:
        assert (entry.dataset_id, entry.task_id) == ("openai/gsm8k", "gsm8k")
        assert entry.value == 90.62
        assert "subset gsm8k:n=64,seed=5 (n=64)" in entry.notes
        assert "temperature 0.6, top-p 0.95, seed 0" in entry.notes
        assert entry.source_url == f"https://huggingface.co/{cards.REPO}"


@pytest.mark.parametrize("subset", ["embedded", "math500:n=64", "aime24", "own.jsonl"])
def test_other_problems_are_no_eval_result(tmp_path: Path, subset: str) -> None:
    manifest = cards.manifest(tmp_path, report=cards.math_report(subset))
    assert not any(path.startswith(".eval_results") for path in texts(manifest, tmp_path))


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_licence_goes_along(tmp_path: Path, model) -> None:
    written = texts(cards.manifest(tmp_path, model=model.id), tmp_path)
    ours = OWN_LICENSE.read_text().splitlines()
    assert written["LICENSE"].splitlines() == [
        "Copyright (c) 2023 DeepSeek" if line.startswith("Copyright") else line for line in ours
    ]
    assert ("NOTICE" in written) == bool(model.base_terms)
    if "Llama" in model.id:
        version = model.base_terms.split()[1]
        # Section 1.b.iii of the agreement, word for word.
        assert written["NOTICE"].startswith(
            f"Llama {version} is licensed under the Llama {version} Community License, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
        )
    if model.base_terms:
        assert model.base_model in written["NOTICE"]
        assert model.terms.url in written["NOTICE"]


def test_what_the_export_carried_over_is_not_written_again(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model=LLAMA)
    carried = FileRecord(name="LICENSE", size_bytes=1064, sha256="1c" * 32)
    manifest = dataclasses.replace(manifest, companions=(*manifest.companions, carried))
    assert texts(manifest, tmp_path).keys() == {"params", "NOTICE"}


def test_an_unknown_model_gets_no_licence_of_ours(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model="someone/finetune")
    assert texts(manifest, tmp_path).keys() == {"params"}


def test_the_embedded_model_has_tightfits_licence(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, model="tiny-r1", revision=None)
    weights = hash_file(locate_model(None).path / "model.safetensors")
    known = dataclasses.replace(manifest.input, files=(weights,))
    written = texts(dataclasses.replace(manifest, input=known), tmp_path)
    assert written["LICENSE"] == OWN_LICENSE.read_text()
    assert "NOTICE" not in written
