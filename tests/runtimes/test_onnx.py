"""onnxruntime with its KV cache: logits and generation against transformers, in both dialects."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.deepseek_v3 import (
    deepseek_v3_reference,
    deepseek_v3_weights,
    make_deepseek_v3,
)
from support.onnx_folders import onnx_folder
from support.onnx_models import rtn_weights
from support.tiny_r1 import TINY_R1
from transformers import AutoModelForCausalLM

from tightfit.calib.architecture import DEEPSEEK_V3
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.writer import write_onnx
from tightfit.runtimes.onnx import OnnxModel
from tightfit.runtimes.onnx.session import SessionOptions
from tightfit.runtimes.results import StopReason

CONTEXT_TOKENS = 768
LONGEST_ANSWER = 90
ONE_THREAD = SessionOptions(threads=1)
F32_LIMIT = 3e-4
"""What the order of summation leaves over 700 positions (measured 4e-5); a wrong position or mask
leaves 0.1 and more."""


@pytest.fixture(scope="module", params=list(Dialect))
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"tiny-{request.param}")
    path = onnx_folder(TINY_R1, folder, dialect=request.param)
    with OnnxModel(path, context_tokens=CONTEXT_TOKENS, options=ONE_THREAD) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(TINY_R1, dtype=torch.float32).eval()


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


def test_logits_equal_transformers_across_the_seam_of_chunks(tiny, reference, prompts):
    rng = np.random.default_rng(0)
    tokens = prompts[0] + rng.integers(0, 500, 700).tolist()
    chunks = list(tiny.logits_chunks(tokens))
    assert [len(chunk) for chunk in chunks] == [512, len(tokens) - 512]
    logits_TV = tiny.logits(tokens)
    assert logits_TV.shape == (len(tokens), tiny.vocab_size)
    assert logits_TV.dtype == np.float32
    assert np.array_equal(np.concatenate(chunks), logits_TV)
    assert np.abs(logits_TV - reference_logits(reference, tokens)).max() < F32_LIMIT


@pytest.fixture(scope="module")
def greedy(reference):
    """`reference_greedy`, each prompt answered once."""
    known = {}

    def answer(prompt):
        if tuple(prompt) not in known:
            known[tuple(prompt)] = reference_greedy(reference, prompt, LONGEST_ANSWER)
        return known[tuple(prompt)]

    return answer


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_greedy_generation_equals_the_slow_loop(tiny, greedy, prompts, parallel):
    # With two rows for five prompts of unequal length, rows begin and end at different steps.
    many = [*prompts, prompts[0][:7], prompts[2]]
    expected = [greedy(prompt)[:30] for prompt in many]
    made = tiny.generate(many, max_tokens=30, seed=0, parallel=parallel)
    assert [list(each.token_ids) for each in made] == expected
    for each in made:
        assert each.stop is (StopReason.LENGTH if len(each.token_ids) == 30 else StopReason.END)


def test_a_batch_that_shrinks_goes_on_unchanged(tiny, greedy, prompts):
    # All rows begin together, and the last ones outlive those before them.
    prompts = sorted(prompts, key=lambda prompt: len(greedy(prompt)))
    expected = [greedy(prompt) for prompt in prompts]
    assert len(expected[0]) < len(expected[-1]) < LONGEST_ANSWER
    made = tiny.generate(prompts, max_tokens=LONGEST_ANSWER, seed=0, parallel=3)
    assert [list(each.token_ids) for each in made] == expected


def test_text_writes_special_tokens_out(tiny, prompts):
    tokenizer = load_tokenizer(TINY_R1)
    made = tiny.generate(prompts[:1], max_tokens=LONGEST_ANSWER, seed=0)[0]
    assert made.text == tokenizer.decode(made.token_ids, skip_special_tokens=False)
    assert "</think>" in made.text


def test_tokens_equal_the_tokenizer_file(tiny):
    tokenizer = load_tokenizer(TINY_R1)
    for text in ("What is $19 + 99$?", "<think>\n1 + 1\n</think>\n", "naïve 𝒳", ""):
        assert tiny.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(tiny, prompts):
    def sample(seed, parallel):
        made = tiny.generate(
            prompts * 4,
            max_tokens=24,
            temperature=1.5,
            top_p=0.95,
            seed=seed,
            parallel=parallel,
        )
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
    # Without its number the prompt draws from another stream.
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
    # 6 positions are left, and the last of them still yields a token.
    assert made[0].stop is StopReason.CONTEXT
    assert len(made[0].token_ids) == 7
    assert (made[2].stop, len(made[2].token_ids)) == (StopReason.CONTEXT, 1)


def test_system_info_is_json_and_has_sizes(tiny):
    info = asdict(tiny.system_info)
    json.dumps(info)
    assert info["label"].startswith("onnxruntime 1.")
    assert (info["device"], info["threads"], info["kv_type"]) == ("cpu", 1, "f32")
    # 4 layers, 768 tokens, 2 heads of 64 for keys and as many for values, 4 bytes each.
    assert info["kv_bytes"] == 4 * 768 * 2 * 64 * 2 * 4


@pytest.mark.parametrize("dialect", Dialect)
def test_float16_answers_like_float32(tmp_path, reference, greedy, prompts, dialect):
    path = onnx_folder(TINY_R1, tmp_path, dialect=dialect, precision=Precision.FLOAT16)
    with OnnxModel(path, context_tokens=256, options=ONE_THREAD) as runtime:
        assert runtime.system_info.kv_type == "f16"
        logits_TV = runtime.logits(prompts[0])
        made = runtime.generate(prompts, max_tokens=LONGEST_ANSWER, seed=0)
    expected_TV = reference_logits(reference, prompts[0])
    assert logits_TV.dtype == np.float32
    assert np.abs(logits_TV - expected_TV).max() < 5e-3 * np.abs(expected_TV).max()
    assert [list(each.token_ids) for each in made] == [greedy(prompt) for prompt in prompts]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("dialect", Dialect)
def test_other_families_in_a_batch(tmp_path, family, dialect):
    checkpoint = make_checkpoint(tmp_path / "model", family, dtype=torch.float32)
    path = onnx_folder(checkpoint, tmp_path / "out", dialect=dialect)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 500, length).tolist() for length in (9, 31, 17)]
    expected = [reference_greedy(model, prompt, 20) for prompt in prompts]
    with OnnxModel(path, context_tokens=256, options=ONE_THREAD) as runtime:
        made = runtime.generate(prompts, max_tokens=20, seed=0, parallel=2)
    assert [list(each.token_ids) for each in made] == expected


@pytest.mark.parametrize("dialect", Dialect)
def test_latent_caches_in_a_batch(tmp_path, dialect):
    """DeepSeek-V3: two caches of different widths, concatenated in both dialects."""
    checkpoint = make_deepseek_v3(tmp_path / "model")
    weights = deepseek_v3_weights(checkpoint, "float32")
    model = deepseek_v3_reference(checkpoint, weights, tmp_path / "reference")
    dimensions = dimensions_of(read_config(checkpoint))
    options = OnnxOptions(dialect=dialect)
    graph = build_graph(dimensions, DEEPSEEK_V3, weights, options)
    path, _ = write_onnx(tmp_path / "out" / "model.onnx", graph)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 500, length).tolist() for length in (9, 31, 17)]
    expected = [reference_greedy(model, prompt, 16) for prompt in prompts]
    with OnnxModel(path, checkpoint, context_tokens=64, options=ONE_THREAD) as runtime:
        made = runtime.generate(prompts, max_tokens=16, seed=0, parallel=2)
    assert [list(each.token_ids) for each in made] == expected


def test_the_label_says_how_integers_are_multiplied(tmp_path):
    checkpoint = open_checkpoint(TINY_R1)

    def logits(grid, dialect, **options):
        path = onnx_folder(
            TINY_R1,
            tmp_path / grid,
            dialect=dialect,
            weights=rtn_weights(checkpoint, grid),
        )
        session = SessionOptions(threads=1, **options)
        with OnnxModel(path, context_tokens=64, options=session) as runtime:
            return runtime.system_info.label, runtime.logits(list(range(40)))

    assert logits("int4-g32-sym", Dialect.ORT)[0].endswith("(cpu, accuracy level 1)")
    shipped, shipped_TV = logits("int8-channel-sym", Dialect.STANDARD)
    assert shipped.endswith("(cpu, accuracy level 4)")
    exact, exact_TV = logits("int8-channel-sym", Dialect.STANDARD, exact=True)
    assert exact.endswith("(cpu, accuracy level 1)")
    # Were the rows not fused at level 4, the label would be wrong and these would be equal.
    assert np.abs(shipped_TV - exact_TV).max() > 1e-2
