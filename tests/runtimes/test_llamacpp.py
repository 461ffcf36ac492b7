"""llama.cpp in its child process: logits against transformers, generation, determinism."""

import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from json import dumps

import numpy as np
import pytest
import torch
from support.smollm2 import smollm2_gguf
from support.tiny_r1 import TINY_R1
from transformers import Qwen2ForCausalLM

from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.errors import MissingPackageError, RuntimeFailureError
from tightfit.runtimes.llamacpp import LlamaCpp, binding
from tightfit.runtimes.results import StopReason

CONTEXT_TOKENS = 768
F32_LIMIT = 1e-3
"""What the order of summation leaves over 700 positions (measured 2.7e-4); a wrong rope or mask
leaves 0.1 and more."""


@pytest.fixture(scope="module")
def tiny(tiny_gguf):
    with LlamaCpp(tiny_gguf, context_tokens=CONTEXT_TOKENS, threads=1, kv_type="f32") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference():
    return Qwen2ForCausalLM.from_pretrained(TINY_R1, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TINY_R1)
    questions = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "Solve $3x + 4 = 19$ for $x$.")
    return [prompt_ids(tokenizer, question) for question in questions]


def reference_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def reference_greedy(model, tokens, max_tokens):
    """One token at a time, without a cache: slow and obvious."""
    made = []
    while len(made) < max_tokens:
        token = int(reference_logits(model, tokens + made)[-1].argmax())
        if token == model.config.eos_token_id:
            return made
        made.append(token)
    return made


def test_logits_equal_transformers_on_float32(tiny, reference, prompts):
    # 700 tokens are more than one batch: the seam at 512 must not show.
    rng = np.random.default_rng(0)
    tokens = prompts[0] + rng.integers(0, 500, 700).tolist()
    logits_TV = tiny.logits(tokens)
    assert logits_TV.shape == (len(tokens), tiny.vocab_size)
    assert logits_TV.dtype == np.float32
    assert np.abs(logits_TV - reference_logits(reference, tokens)).max() < F32_LIMIT


def test_chunks_are_the_rows_of_logits(tiny):
    tokens = [position % tiny.vocab_size for position in range(600)]
    chunks = list(tiny.logits_chunks(tokens))
    assert len(chunks) == 2
    assert np.array_equal(np.concatenate(chunks), tiny.logits(tokens))


def test_a_stream_given_up_half_way_does_not_answer_the_next_call(tiny):
    expected = tiny.logits([1, 2, 3])
    stream = tiny.logits_chunks([1] * 600)
    next(stream)
    assert np.array_equal(tiny.logits([1, 2, 3]), expected)
    # The second stream to read would get nothing of its own: it must not go on.
    stream, other = tiny.logits_chunks([1] * 600), tiny.logits_chunks([2] * 600)
    next(stream)
    next(other)
    with pytest.raises(AssertionError, match="ended this stream"):
        next(stream)


def test_greedy_generation_equals_the_slow_loop(tiny, reference, prompts):
    expected = [reference_greedy(reference, prompt, 30) for prompt in prompts]
    # Two slots for three prompts: one is refilled, and prompts of different lengths share batches.
    made = tiny.generate(prompts, max_tokens=30, seed=0, parallel=2)
    assert [list(each.token_ids) for each in made] == expected
    for each in made:
        assert each.stop is (StopReason.LENGTH if len(each.token_ids) == 30 else StopReason.END)


def test_text_writes_special_tokens_out(tiny):
    tokens = tiny.tokenize("5 + 4 = 9\n</think>\nThe answer is $\\boxed{9}$.")
    assert len([token for token in tokens if token > 500]) == 1  # </think> is one special token
    tokenizer = load_tokenizer(TINY_R1)
    made = tiny.generate([tokens[:-4]], max_tokens=8, seed=0)[0]
    assert made.text == tokenizer.decode(made.token_ids, skip_special_tokens=False)


def test_tokens_equal_the_tokenizer_file(tiny):
    tokenizer = load_tokenizer(TINY_R1)
    for text in ("What is $19 + 99$?", "<think>\n1 + 1\n</think>\n", "naïve 𝒳", ""):
        assert tiny.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)


def test_sampling_depends_on_the_seed_only(tiny, prompts):
    def sample(seed):
        made = tiny.generate(prompts * 4, max_tokens=24, temperature=1.5, top_p=0.95, seed=seed)
        return [each.token_ids for each in made]

    first = sample(1)
    assert sample(1) == first
    assert sample(2) != first
    assert len(set(first)) > len(prompts)  # the same prompt has a stream of its own each time


def test_the_rest_of_a_job_draws_what_it_would_have_drawn(tiny, prompts):
    options = {"max_tokens": 24, "temperature": 5.0, "seed": 3, "parallel": 1}
    many, rest = prompts * 2, [1, 2, 5]
    whole = tiny.generate(many, **options)
    made = tiny.generate([many[index] for index in rest], streams=rest, **options)
    assert made == [whole[index] for index in rest]
    # Without its number the prompt draws from another stream.
    assert tiny.generate([many[5]], **options) != [whole[5]]


def test_completions_arrive_as_they_end_and_the_context_ends_one(tiny_gguf, prompts):
    seen = []
    with LlamaCpp(tiny_gguf, context_tokens=256, threads=1) as runtime:
        full = [[5] * 250, prompts[0]]
        made = runtime.generate(
            full,
            max_tokens=1000,
            temperature=5.0,
            seed=0,
            on_finished=lambda index, generation: seen.append((index, generation)),
        )
        assert runtime.generate([], max_tokens=1, seed=0) == []
    assert sorted(seen, key=lambda pair: pair[0]) == list(enumerate(made))
    # The first prompt has room for 7 tokens, the second goes on beyond them.
    assert [index for index, _ in seen] == [0, 1]
    # 6 positions are left, and the last of them still yields a token.
    assert made[0].stop is StopReason.CONTEXT
    assert len(made[0].token_ids) == 7


def test_float32_cache_differs_from_float16(tiny_gguf, reference, prompts):
    # Flash attention would cast the cache to float16 behind our back.
    with LlamaCpp(tiny_gguf, context_tokens=256, threads=1) as shipped:
        difference = np.abs(
            shipped.logits(prompts[0]) - reference_logits(reference, prompts[0])
        ).max()
    assert difference > 1e-4  # a float32 cache leaves 6e-6 here


def test_system_info_is_json_and_has_sizes(tiny, tiny_gguf):
    info = asdict(tiny.system_info)
    dumps(info)
    assert info["label"] == f"llama.cpp (xllamacpp {metadata.version('xllamacpp')})"
    # 4 layers, 768 tokens, 2 heads of 64 for keys and as many for values, 4 bytes each.
    assert info["kv_bytes"] == 4 * 768 * 2 * 64 * 2 * 4
    assert info["facts"]["model_bytes"] == pytest.approx(tiny_gguf.stat().st_size, rel=0.05)
    assert info["facts"]["compute_bytes"] > 0


def test_real_model_answers_and_repeats_itself():
    with LlamaCpp(smollm2_gguf(), context_tokens=256) as runtime:
        prompt = runtime.tokenize(
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        )
        first, second = runtime.logits(prompt), runtime.logits(prompt)
        assert np.array_equal(first, second)
        made = runtime.generate([prompt], max_tokens=20, seed=0)[0]
    assert "Paris" in made.text
    assert made.finished


def test_tokens_outside_the_model_are_refused(tiny):
    with pytest.raises(RuntimeFailureError, match="the vocabulary"):
        tiny.logits([1, tiny.vocab_size])
    with pytest.raises(RuntimeFailureError, match=f"1 to {CONTEXT_TOKENS}"):
        tiny.logits([1] * (CONTEXT_TOKENS + 1))
    with pytest.raises(RuntimeFailureError, match="0 tokens"):
        tiny.generate([[]], max_tokens=1, seed=0)
    assert len(tiny.logits([1])) == 1  # and the child lives on


def test_a_gpu_is_not_silently_replaced_by_the_cpu(tiny_gguf):
    with pytest.raises(RuntimeFailureError, match="no GPU backend"):
        LlamaCpp(tiny_gguf, context_tokens=64, gpu_layers=4)


def test_missing_package_names_the_extra(monkeypatch, tiny_gguf):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(binding.metadata, "version", missing)
    with pytest.raises(MissingPackageError, match=r"tightfit\[llamacpp\]"):
        LlamaCpp(tiny_gguf, context_tokens=64)


def test_another_version_names_the_pinned_one(monkeypatch, tiny_gguf):
    monkeypatch.setattr(binding.metadata, "version", lambda _: "2025.1.1")
    with pytest.raises(MissingPackageError, match=binding.PACKAGE_VERSION):
        LlamaCpp(tiny_gguf, context_tokens=64)


def test_the_parent_never_loads_the_library():
    script = (
        "from tightfit.runtimes.llamacpp import LlamaCpp\n"
        f"LlamaCpp({str(smollm2_gguf())!r}, context_tokens=64)\n"
        "print('xllamacpp' in open('/proc/self/maps').read())\n"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert made.stdout == "False\n"
