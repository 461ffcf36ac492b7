"""onnxruntime-genai runs the folder: the same tokens as our runtime, the same ids as `tokenizers`.

genai is the reader that we did not write; telemetry must be off before it is imported.
"""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.gguf_models import REAL_TOKENIZERS, unpack_tokenizer
from support.onnx_folders import onnx_folder
from support.onnx_models import expected_logits, reference_model, rtn_weights
from support.tiny_r1 import TINY_R1
from tokenizers import Tokenizer

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.export.onnx.genai import genai_model_type, write_genai_config
from tightfit.export.onnx.naming import OnnxLayout, add_transformers_js_config, onnx_names
from tightfit.export.onnx.options import Precision
from tightfit.runtimes.onnx import OnnxModel
from tightfit.runtimes.onnx.session import SessionOptions

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
og = pytest.importorskip("onnxruntime_genai")

TEXTS = (
    "What is $19 + 99$?",
    " naïve 𝒳 3x+4  \n\n  x=1234567",
    "日本語のテスト 漢字",
    "def f(x):\n\treturn x  # don't",
)


def write_config(folder, **options):
    assert write_genai_config(folder, dimensions_of(read_config(folder)), **options)
    return json.loads((folder / "genai_config.json").read_text())


def genai_greedy(folder, prompt, max_tokens):
    """What follows the prompt, without the end token."""
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + max_tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def our_greedy(path, prompt, max_tokens):
    with OnnxModel(path, context_tokens=256, options=SessionOptions(threads=1)) as runtime:
        made = runtime.generate([prompt], max_tokens=max_tokens, seed=0)[0]
    return list(made.token_ids), made.finished


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    onnx_folder(TINY_R1, folder)
    write_config(folder)
    return folder


@pytest.mark.parametrize("precision", Precision)
def test_tiny_r1_generates_the_same_tokens(tmp_path, precision):
    path = onnx_folder(TINY_R1, tmp_path, precision=precision)
    write_config(tmp_path)
    for question in ("What is $19 + 99$?", "What is $7 \\cdot 8$?"):
        prompt = prompt_ids(load_tokenizer(TINY_R1), question)
        expected, finished = our_greedy(path, prompt, 100)
        assert finished  # so that the end token of genai_config.json is what ends it there
        assert genai_greedy(tmp_path, prompt, 100) == expected


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_every_family_generates_the_same_tokens(tmp_path, family, precision):
    checkpoint = make_checkpoint(tmp_path / "model", family, dtype=torch.float16)
    path = onnx_folder(checkpoint, tmp_path / "out", precision=precision)
    config = write_config(tmp_path / "out")
    assert config["model"]["type"] == family
    prompt = np.random.default_rng(1).integers(0, 500, 17).tolist()
    expected, _ = our_greedy(path, prompt, 24)
    assert genai_greedy(tmp_path / "out", prompt, 24)[: len(expected)] == expected


def test_int8_rows_keep_the_activations(tmp_path):
    checkpoint = open_checkpoint(TINY_R1)
    weights = rtn_weights(checkpoint, "int8-channel-sym", head="int8-channel-sym")
    onnx_folder(TINY_R1, tmp_path, weights=weights)
    write_config(tmp_path)
    prompt = np.random.default_rng(0).integers(0, 500, 20)
    expected = expected_logits(reference_model(checkpoint, weights), prompt)
    generator = og.Generator(model := og.Model(str(tmp_path)), og.GeneratorParams(model))
    generator.append_tokens(prompt.astype(np.int32))
    logits = np.array(generator.get_output("logits"))[0]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_names_of_transformers_js_run_as_well(tmp_path):
    names = onnx_names("f16", Precision.FLOAT16, OnnxLayout.TRANSFORMERS_JS)
    path = onnx_folder(TINY_R1, tmp_path, precision=Precision.FLOAT16, names=names)
    add_transformers_js_config(tmp_path, "f16", Precision.FLOAT16)
    write_config(tmp_path, model_file=f"onnx/{names[0]}")
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(names)
    prompt = prompt_ids(load_tokenizer(TINY_R1), "What is $19 + 99$?")
    expected, _ = our_greedy(path, prompt, 100)
    assert genai_greedy(tmp_path, prompt, 100) == expected


def test_the_chat_template_gives_our_prompt(tiny):
    tokenizer = og.Tokenizer(og.Model(str(tiny)))
    messages = json.dumps([{"role": "user", "content": "What is $19 + 99$?"}])
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    prompt = prompt_ids(load_tokenizer(TINY_R1), "What is $19 + 99$?")
    assert [int(token) for token in tokenizer.encode(text)] == prompt


def test_search_takes_over_the_sampling_of_r1(tiny):
    config = json.loads((tiny / "genai_config.json").read_text())
    assert config["search"] == {
        "max_length": 1024,
        "past_present_share_buffer": True,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,
    }
    ids = {key: config["model"][key] for key in config["model"] if key.endswith("_id")}
    assert ids == {"bos_token_id": 506, "eos_token_id": 507, "pad_token_id": 507}
    params = og.GeneratorParams(og.Model(str(tiny)))
    assert params.get_search_options()["top_p"] == pytest.approx(0.95)


def test_the_sampling_is_not_cut_to_genai_s_fifty_tokens(tiny):
    prompt = prompt_ids(load_tokenizer(TINY_R1), "What is $19 + 99$?")
    model = og.Model(str(tiny))
    drawn = set()
    for seed in range(300):
        params = og.GeneratorParams(model)
        params.set_search_options(
            temperature=100.0, top_p=1.0, random_seed=seed, max_length=len(prompt) + 1
        )
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        generator.generate_next_token()
        drawn.add(int(generator.get_sequence(0)[-1]))
    assert len(drawn) > 100  # nearly flat over 512 tokens


def test_a_greedy_model_and_several_end_tokens(tmp_path):
    shutil.copy(TINY_R1 / "config.json", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [507, 511]}')
    config = write_config(tmp_path, context_tokens=300)
    assert config["model"]["eos_token_id"] == [507, 511]
    assert config["model"]["pad_token_id"] == 507
    assert config["search"] == {
        "max_length": 300,
        "past_present_share_buffer": True,
        "do_sample": False,
    }
    assert config["model"]["context_length"] == 1024


def test_an_unknown_family_writes_nothing(tmp_path):
    assert genai_model_type("deepseek_v3") is None
    made = make_checkpoint(tmp_path / "model", "qwen2")
    dimensions = replace(dimensions_of(read_config(made)), model_type="deepseek_v3")
    assert not write_genai_config(made, dimensions)
    assert not (made / "genai_config.json").exists()


@pytest.mark.parametrize("name", REAL_TOKENIZERS)
def test_real_tokenizers_are_read_as_they_lie(tmp_path, tiny, name):
    folder = unpack_tokenizer(name, tmp_path)
    shutil.copy(tiny / "genai_config.json", folder)
    (folder / "onnx").symlink_to(tiny / "onnx")
    theirs = og.Tokenizer(og.Model(str(folder)))
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert [int(token) for token in theirs.encode(text)] == ids
        assert theirs.decode(np.array(ids, np.int32)) == text
