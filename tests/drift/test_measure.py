"""Both measurements with the real runtime on the embedded model."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.tiny_r1 import TINY_R1
from transformers import Qwen2ForCausalLM

from tightfit.calib.tokenizer import completion_ids, load_tokenizer, prompt_ids
from tightfit.drift.grading import Grade
from tightfit.drift.measure import (
    Protocol,
    TokenSample,
    measure_accuracy,
    measure_token_drift,
)
from tightfit.drift.subset import load_subset, parse_spec
from tightfit.errors import DriftError
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.results import Generation, StopReason


@pytest.fixture(scope="module")
def subset():
    return load_subset(parse_spec("embedded:n=24,seed=0"))


@pytest.fixture(scope="module")
def samples(subset):
    tokenizer = load_tokenizer(TINY_R1)
    made = []
    for problem in subset.problems:
        prompt = prompt_ids(tokenizer, problem.problem)
        reasoning, _, answer = problem.solution.rpartition("\n")
        completion = completion_ids(tokenizer, f"{reasoning}\n</think>\n{answer}")
        made.append(TokenSample(tokens=(*prompt, *completion), first_scored=len(prompt)))
    return made


@pytest.fixture(scope="module")
def runtime(tiny_gguf):
    with LlamaCpp(tiny_gguf, context_tokens=512, threads=1, kv_type="f32") as model:
        yield model


@pytest.fixture(scope="module")
def reference():
    model = Qwen2ForCausalLM.from_pretrained(TINY_R1, dtype=torch.float32).eval()

    def logits(tokens):
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


def test_a_lossless_file_does_not_drift(reference, runtime, samples):
    seen = []
    (drift,) = measure_token_drift(
        reference, [runtime], samples, lambda done, total: seen.append((done, total))
    )
    assert drift.n_samples == len(samples)
    assert drift.n_tokens == sum(len(each.tokens) - each.first_scored for each in samples)
    assert drift.kl_max_nats < 1e-6
    assert drift.top1_agreement > 0.999
    assert drift.artifact_perplexity == pytest.approx(drift.baseline_perplexity, rel=1e-4)
    assert seen[-1] == (len(samples), len(samples))


def test_only_the_completion_counts(reference, runtime, samples):
    sample = samples[0]

    def broken_in_the_prompt(tokens):
        logits_TV = reference(tokens).copy()
        logits_TV[: sample.first_scored - 1] = np.nan
        logits_TV[-1] = np.nan
        return logits_TV

    (drift,) = measure_token_drift(broken_in_the_prompt, [runtime], [sample])
    assert drift.kl_max_nats < 1e-6


def test_a_known_drift_is_found_at_every_seam(reference, runtime, samples, monkeypatch):
    """The artifact's stream in chunks of 7 rows gives what one array gives."""
    temperature = 1.25

    def flatter(tokens):
        return reference(tokens) / temperature

    def in_chunks(tokens):
        logits_TV = runtime.logits(tokens)
        for start in range(0, len(tokens), 7):
            yield logits_TV[start : start + 7]

    class Chunked:
        logits_chunks = staticmethod(in_chunks)

    asked = []

    def counted(tokens):
        asked.append(tokens)
        return flatter(tokens)

    whole, pieces = measure_token_drift(counted, [runtime, Chunked()], samples[:4])
    assert asked == [sample.tokens for sample in samples[:4]]  # once for both artifacts
    assert asdict(pieces) == pytest.approx(asdict(whole), rel=1e-9)
    assert whole.kl_mean_nats > 1e-3


def test_nothing_to_score_is_refused(reference, runtime):
    with pytest.raises(DriftError, match="none of them to score"):
        measure_token_drift(reference, [runtime], [TokenSample(tokens=(1, 2), first_scored=2)])


def test_another_vocabulary_is_refused(reference, runtime, samples):
    with pytest.raises(DriftError, match="same vocabulary"):
        measure_token_drift(lambda tokens: reference(tokens)[:, :-8], [runtime], samples[:1])


def test_accuracy_of_a_model_against_itself(runtime, subset):
    tokenizer = load_tokenizer(TINY_R1)
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in subset.problems]
    seen = []
    result = measure_accuracy(
        runtime,
        [runtime],
        subset.problems,
        prompts,
        Protocol(max_tokens=200),
        lambda done, total: seen.append((done, total)),
    )
    (artifact,) = result.artifacts
    paired = artifact.paired
    assert paired.n == len(subset.problems)
    assert (paired.only_baseline_correct, paired.only_artifact_correct) == (0, 0)
    assert result.baseline.grades == artifact.answers.grades
    assert result.baseline.count(Grade.CORRECT) == paired.baseline_correct
    # A trained model solves some, and what it is credited with really says the answer.
    for problem, grade, text in zip(
        subset.problems, result.baseline.grades, result.baseline.texts, strict=True
    ):
        if grade is Grade.CORRECT:
            assert f"\\boxed{{{problem.answer}}}" in text
    assert seen[-1] == (2 * paired.n, 2 * paired.n)
    assert seen == sorted(seen)
    json.dumps(asdict(result), allow_nan=False)


def test_short_answers_are_truncated_not_wrong(runtime, subset):
    tokenizer = load_tokenizer(TINY_R1)
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in subset.problems[:4]]
    result = measure_accuracy(
        runtime, [runtime], subset.problems[:4], prompts, Protocol(max_tokens=3)
    )
    assert result.artifacts[0].answers.count(Grade.TRUNCATED) == 4
    assert result.artifacts[0].paired.artifact_correct == 0


def test_every_artifact_is_compared_with_the_same_baseline(runtime, subset):
    tokenizer = load_tokenizer(TINY_R1)
    problems = subset.problems[:6]
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in problems]
    calls, seen = [], []

    class Mute:
        """Ends every answer at once."""

        def generate(self, prompts, *, on_progress, **_options):
            calls.append(len(prompts))
            for done in range(len(prompts)):
                on_progress(done + 1, len(prompts))
            return [Generation(token_ids=(), text="", stop=StopReason.END)] * len(prompts)

    result = measure_accuracy(
        runtime,
        [Mute(), runtime],
        problems,
        prompts,
        Protocol(max_tokens=200),
        lambda done, total: seen.append((done, total)),
    )
    mute, same = result.artifacts
    n_correct = result.baseline.count(Grade.CORRECT)
    assert n_correct > 0
    assert mute.paired.artifact_correct == 0
    assert mute.paired.baseline_correct == same.paired.baseline_correct == n_correct
    assert same.paired.artifact_correct == n_correct
    assert seen == [(done + 1, 18) for done in range(18)]
    assert calls == [6]
