"""Checkpoints in transformers: chunks, batches and sampling against plain calls of the model."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint, to_fp8_blocks, to_fp8_compressed_tensors
from support.deepseek_v3 import make_deepseek_v3
from support.tiny_r1 import TINY_R1
from transformers import AutoModelForCausalLM

from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.runtimes.results import StopReason
from tightfit.runtimes.transformers import TransformersModel

CONTEXT_TOKENS = 768
END_ID = 507
F32_LIMIT = 1e-5
"""What the order of summation may leave; a wrong position or mask leaves 0.1 and more."""
WINDOW = {
    "sliding_window": 8,
    "use_sliding_window": True,
    "layer_types": ["full_attention", "sliding_attention"],
}

CHECKPOINTS = {
    "llama": lambda path: make_checkpoint(path, "llama"),
    "tied": lambda path: make_checkpoint(path, "qwen3", tie=True),
    "window": lambda path: make_checkpoint(path, "qwen2", **WINDOW),
    "deepseek_v3": lambda path: make_deepseek_v3(path),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    with TransformersModel(TINY_R1, context_tokens=CONTEXT_TOKENS) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference():
    return plain_model(TINY_R1)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TINY_R1)
    questions = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "Solve $3x + 4 = 19$ for $x$.")
    return [prompt_ids(tokenizer, question) for question in questions]


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def plain_greedy(model, tokens, max_tokens):
    """The answer of transformers' own loop, without the end token."""
    ids = torch.tensor([tokens])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
    )
    return [token for token in made[0, len(tokens) :].tolist() if token != END_ID]


def random_prompts(*lengths):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 500, length).tolist() for length in lengths]


def test_logits_equal_a_plain_call_across_the_seam_of_chunks(tiny, reference, prompts):
    tokens = prompts[0] + random_prompts(700)[0]
    chunks = list(tiny.logits_chunks(tokens))
    assert [len(chunk) for chunk in chunks] == [512, len(tokens) - 512]
    logits_TV = tiny.logits(tokens)
    assert logits_TV.shape == (len(tokens), tiny.vocab_size)
    assert logits_TV.dtype == np.float32
    assert np.array_equal(np.concatenate(chunks), logits_TV)
    assert np.abs(logits_TV - plain_logits(reference, tokens)).max() < F32_LIMIT


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_greedy_answers_are_those_of_transformers(tiny, reference, prompts, parallel):
    # With two rows for five prompts of unequal length, rows begin and end at different steps.
    many = [*prompts, prompts[0][:7], prompts[2]]
    made = tiny.generate(many, max_tokens=38, seed=0, parallel=parallel)
    assert [list(each.token_ids) for each in made] == [
        plain_greedy(reference, prompt, 38) for prompt in many
    ]
    assert {each.stop for each in made} == {StopReason.END, StopReason.LENGTH}
    for each in made:
        assert each.stop is (StopReason.LENGTH if len(each.token_ids) == 38 else StopReason.END)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_other_families_alone_and_in_a_batch(tmp_path, kind):
    folder = CHECKPOINTS[kind](tmp_path / "model")
    model = plain_model(folder)
    prompts = random_prompts(9, 31, 17, 4)
    with TransformersModel(folder, context_tokens=128) as runtime:
        (long,) = random_prompts(100)
        assert np.abs(runtime.logits(long) - plain_logits(model, long)).max() < F32_LIMIT
        made = runtime.generate(prompts, max_tokens=24, seed=0, parallel=3)
    expected = [plain_greedy(model, prompt, 24) for prompt in prompts]
    assert [list(each.token_ids) for each in made] == expected


def test_a_narrow_chunk_reads_the_same(tmp_path, monkeypatch):
    """A window across chunks, which a cache that drops old places would get wrong."""
    folder = CHECKPOINTS["window"](tmp_path / "model")
    monkeypatch.setattr("tightfit.runtimes.transformers.cache.chunk_tokens", lambda _vocab: 5)
    (tokens,) = random_prompts(43)
    with TransformersModel(folder, context_tokens=64) as runtime:
        assert [len(chunk) for chunk in runtime.logits_chunks(tokens)] == [5] * 8 + [3]
        difference_TV = runtime.logits(tokens) - plain_logits(plain_model(folder), tokens)
    assert np.abs(difference_TV).max() < F32_LIMIT


def test_fp8_blocks_are_dequantized_without_rounding(tmp_path):
    source = make_checkpoint(tmp_path / "source", "llama")
    folder = to_fp8_blocks(source, tmp_path / "fp8")
    stored = load_file(folder / "model.safetensors")
    plain = shutil.copytree(source, tmp_path / "plain")
    values = {}
    for name, tensor in stored.items():
        if not name.endswith("_scale_inv"):
            scale = stored.get(f"{name}_scale_inv")
            if scale is not None:
                blocks = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
                tensor = tensor.float() * blocks[: tensor.shape[0], : tensor.shape[1]]
            values[name] = tensor
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    (tokens,) = random_prompts(40)
    with TransformersModel(folder, context_tokens=64) as runtime:
        assert runtime.system_info.facts["quantization"] == "fp8"
        assert runtime.system_info.kv_type == "f32"
        logits_TV = runtime.logits(tokens)
    assert np.abs(logits_TV - plain_logits(plain_model(plain), tokens)).max() < F32_LIMIT


def test_compressed_tensors_run_as_transformers_runs_them(tmp_path):
    source = make_checkpoint(tmp_path / "source", "llama")
    folder = to_fp8_compressed_tensors(source, tmp_path / "fp8", "channel")
    (tokens,) = random_prompts(40)
    expected_TV = plain_logits(plain_model(folder), tokens)
    with TransformersModel(folder, context_tokens=64) as runtime:
        assert np.abs(runtime.logits(tokens) - expected_TV).max() < F32_LIMIT
    # And not as if nothing had been rounded.
    assert np.abs(expected_TV - plain_logits(plain_model(source), tokens)).max() > 1e-2


def test_another_dtype_is_computed_in(tiny, prompts):
    with TransformersModel(TINY_R1, context_tokens=64, dtype=torch.bfloat16) as runtime:
        assert runtime.system_info.kv_type == "bf16"
        assert runtime.system_info.kv_bytes == 64 * 4 * 2 * 2 * 64 * 2
        logits_TV = runtime.logits(prompts[0])
    difference = np.abs(logits_TV - tiny.logits(prompts[0])).max()
    assert logits_TV.dtype == np.float32
    assert 1e-3 < difference < 1


def test_tokens_and_text_are_those_of_the_tokenizer(tiny, prompts):
    tokenizer = load_tokenizer(TINY_R1)
    for text in ("What is $19 + 99$?", "<think>\n1 + 1\n</think>\n", "naïve 𝒳", ""):
        assert tiny.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)
    made = tiny.generate(prompts[:1], max_tokens=90, seed=0)[0]
    assert made.text == tokenizer.decode(made.token_ids, skip_special_tokens=False)
    assert "</think>" in made.text


def test_sampling_depends_on_the_seed_and_not_on_the_batch(tiny, prompts):
    def sample(seed, parallel):
        options = {"max_tokens": 24, "temperature": 1.5, "top_p": 0.95}
        made = tiny.generate(prompts * 4, **options, seed=seed, parallel=parallel)
        return [each.token_ids for each in made]

    first = sample(1, 12)
    assert sample(1, 12) == first
    assert sample(1, 5) == first
    assert sample(2, 12) != first
    assert len(set(first)) > len(prompts)  # the same prompt has a stream of its own each time


def test_the_rest_of_a_job_draws_what_it_would_have_drawn(tiny, prompts):
    options = {"max_tokens": 24, "temperature": 5.0, "seed": 3, "parallel": 1}
    many, rest = prompts * 2, [1, 2, 5]
    whole = tiny.generate(many, **options)
    made = tiny.generate([many[index] for index in rest], streams=rest, **options)
    assert made == [whole[index] for index in rest]
    assert tiny.generate([many[5]], **options) != [whole[5]]


def test_completions_arrive_as_they_end_and_the_context_ends_one(tiny, prompts):
    seen = []
    full = [[5] * (CONTEXT_TOKENS - 6), prompts[0], [5] * CONTEXT_TOKENS]
    made = tiny.generate(
        full,
        max_tokens=1000,
        temperature=5.0,
        seed=0,
        on_finished=lambda index, generation: seen.append((index, generation)),
    )
    assert tiny.generate([], max_tokens=1, seed=0) == []
    assert sorted(seen, key=lambda pair: pair[0]) == list(enumerate(made))
    # The last ends with its first token, the first with its seventh.
    assert [index for index, _ in seen] == [2, 0, 1]
    assert made[0].stop is StopReason.CONTEXT
    assert len(made[0].token_ids) == 7
    assert (made[2].stop, len(made[2].token_ids)) == (StopReason.CONTEXT, 1)


def test_system_info_is_json_and_has_sizes(tiny):
    info = asdict(tiny.system_info)
    json.dumps(info)
    assert info["label"].startswith("transformers 5.")
    assert f"torch {torch.__version__}" in info["label"]
    assert (info["device"], info["threads"], info["kv_type"]) == ("cpu", 1, "f32")
    # 4 layers, 768 tokens, 2 heads of 64 for keys and as many for values, 4 bytes each.
    assert info["kv_bytes"] == 4 * 768 * 2 * 64 * 2 * 4
    assert info["facts"]["quantization"] == "none"
    assert tiny.name == "tiny-r1"
