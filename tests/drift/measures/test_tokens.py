"""Token drift of samples against slow loops, and through runtimes on the embedded model."""

import copy
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.tiny_r1 import TINY_R1
from transformers import Qwen2ForCausalLM

from tightfit.calib.tokenizer import completion_ids, load_tokenizer, prompt_ids
from tightfit.drift.measures.divergence import kl_of_logits
from tightfit.drift.measures.partition import Column, measure_rows
from tightfit.drift.measures.tokens import (
    CONFIDENT,
    TokenSample,
    TokenTable,
    clustered_stderr,
    compare_sample,
    keep_sample,
)
from tightfit.errors import DriftError
from tightfit.runtimes.logprobs import NUCLEUS_TAIL, keep_logprobs, to_arrays

QUESTIONS = ["What is 17 + 25?", "Solve 3x + 4 = 19 for x.", "What is 12 times 9?"]
COMPLETION = "17 + 25 = 42. So x is 5, and 12 * 9 = 108.\n</think>\nThe answer is \\boxed{42}."


def random_rows(rng, n):
    """Rows of all orders of magnitude."""
    rows = np.empty((n, len(Column)))
    rows[:, Column.KL] = 10 ** rng.uniform(-10, 1.5, n) * (rng.random(n) < 0.9)
    rows[:, Column.AGREES] = rng.random(n) < 0.8
    rows[:, Column.BASELINE_NLL], rows[:, Column.ARTIFACT_NLL] = rng.exponential(size=(2, n))
    rows[:, Column.BASELINE_TOP] = rng.uniform(0.5, 1, n)
    rows[:, Column.TAIL_MASS] = rng.uniform(0, 1e-6, n)
    return rows


def table_of(samples):
    table = TokenTable()
    for number, rows in samples.items():
        table.add(number, rows)
    return table


def test_the_summary_equals_a_slow_loop():
    rng = np.random.default_rng(1)
    samples = {number: random_rows(rng, n) for number, n in enumerate((5, 1, 400, 170, 63))}
    drift = table_of(samples).summarize()
    rows = [row for sample in samples.values() for row in sample]
    kl = [row[Column.KL] for row in rows]
    assert (drift.n_samples, drift.n_tokens) == (5, 639)
    assert drift.kl_mean_nats == pytest.approx(np.mean(kl))
    for name, percent in (("median", 50), ("p90", 90), ("p99", 99), ("p999", 99.9), ("max", 100)):
        assert getattr(drift, f"kl_{name}_nats") == pytest.approx(np.percentile(kl, percent))
    sure = [row for row in rows if row[Column.BASELINE_TOP] >= CONFIDENT]
    assert 50 < len(sure) < 300
    assert drift.confident.n_tokens == len(sure)
    sure_kl = [row[Column.KL] for row in sure]
    assert drift.confident.kl_mean_nats == pytest.approx(np.mean(sure_kl))
    assert drift.confident.kl_p99_nats == pytest.approx(np.percentile(sure_kl, 99))
    assert drift.confident.top1_agreement == pytest.approx(
        np.mean([row[Column.AGREES] for row in sure])
    )
    for name, column in (("baseline", Column.BASELINE_NLL), ("artifact", Column.ARTIFACT_NLL)):
        expected = math.exp(np.mean([row[column] for row in rows]))
        assert getattr(drift, f"{name}_perplexity") == pytest.approx(expected)
    assert drift.top1_agreement == pytest.approx(np.mean([row[Column.AGREES] for row in rows]))
    assert drift.tail_mass == pytest.approx(np.mean([row[Column.TAIL_MASS] for row in rows]))
    lower, upper = drift.kl_interval_nats
    assert lower < drift.kl_mean_nats < upper
    json.dumps(asdict(drift), allow_nan=False)


def test_bins_equal_a_slow_loop():
    rng = np.random.default_rng(2)
    samples = {number: random_rows(rng, n) for number, n in enumerate((700, 3, 64, 65))}
    # On the edges, which belong to the bin above.
    samples[1][:, Column.KL] = [1e-8, 1e-3, 10.0]
    drift = table_of(samples).summarize()
    by_position, by_kl = {}, {}
    for sample in samples.values():
        for place, row in enumerate(sample, 1):
            power = len(bin(place)) - 3
            by_position.setdefault((2.0**power, 2.0 ** (power + 1)), []).append(row)
            kl = row[Column.KL]
            (edges,) = [
                edges
                for edges in [(0.0, 1e-8)] + [(10.0**k, 10.0 ** (k + 1)) for k in range(-8, 3)]
                if edges[0] <= kl < edges[1]
            ]
            by_kl.setdefault(edges, []).append(row)
    for bins, expected in ((drift.by_position, by_position), (drift.by_kl, by_kl)):
        assert [(each.low, each.high) for each in bins] == sorted(expected)
        for each in bins:
            rows = expected[each.low, each.high]
            assert each.n_tokens == len(rows)
            assert each.kl_mean_nats == pytest.approx(np.mean([row[Column.KL] for row in rows]))
            assert each.top1_agreement == pytest.approx(
                np.mean([row[Column.AGREES] for row in rows])
            )
    assert len(drift.by_position) == 10
    assert len(drift.by_kl) == 11


def test_the_order_of_arrival_does_not_matter():
    rng = np.random.default_rng(3)
    samples = {number: random_rows(rng, 20) for number in range(5)}
    backwards = dict(reversed(samples.items()))
    assert table_of(samples).summarize() == table_of(backwards).summarize()


def test_one_sample_says_nothing_of_the_spread():
    drift = table_of({0: random_rows(np.random.default_rng(4), 30)}).summarize()
    assert (
        drift.kl_mean_stderr_nats is drift.kl_interval_nats is drift.top1_agreement_stderr is None
    )


def test_no_confident_token():
    rows = random_rows(np.random.default_rng(5), 30)
    rows[:, Column.BASELINE_TOP] = 0.89
    assert table_of({0: rows}).summarize().confident is None


def test_a_ruined_artifact_has_a_finite_perplexity():
    rows = random_rows(np.random.default_rng(6), 30)
    rows[:, Column.ARTIFACT_NLL] = 5000
    json.dumps(asdict(table_of({0: rows}).summarize()), allow_nan=False)


def test_nothing_scored_is_refused():
    with pytest.raises(DriftError, match="no position"):
        TokenTable().summarize()


def test_standard_error_covers_clustered_tokens():
    # Tokens of a sample share an effect: the error of a mean over tokens must not be sigma/sqrt(T).
    rng = np.random.default_rng(4)
    means, errors = [], []
    for _ in range(2000):
        counts = rng.integers(5, 60, 40).astype(np.float64)
        shared = rng.normal(size=40)
        sums = np.array([(shared[i] + rng.normal(size=int(counts[i]))).sum() for i in range(40)])
        means.append(sums.sum() / counts.sum())
        errors.append(clustered_stderr(sums, counts))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)


class Chunked:
    """A runtime that gives its logits in pieces."""

    def __init__(self, logits, rows):
        self.logits = logits
        self.rows = rows

    def logits_chunks(self, tokens):
        logits_TV = self.logits(tokens)
        for start in range(0, len(tokens), self.rows):
            yield logits_TV[start : start + self.rows]


class Served:
    """A server that gives the top tokens only."""

    name = "served"
    system_info = None
    vocab_size = 50

    def __init__(self, logits):
        self.logits = logits
        self.asked = []

    def generate(self):
        raise AssertionError("only log-probabilities are needed")

    tokenize = close = __enter__ = __exit__ = generate

    def token_logprobs(self, tokens, first_scored):
        self.asked.append((tokens, first_scored))
        logits_TV = self.logits(tokens)[first_scored - 1 : -1]
        return keep_logprobs(logits_TV, np.array(tokens[first_scored:]))


def fake_logits(noise=0.0, vocabulary=50):
    """Logits that depend on the tokens read so far."""

    def logits(tokens):
        rng = np.random.default_rng(tokens[0])
        clean = 3 * rng.normal(size=(len(tokens), vocabulary))
        return (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)

    return logits


SAMPLE = TokenSample(tokens=tuple(range(3, 33)), first_scored=11)


@pytest.mark.parametrize("first_scored", [0, 1, 2, 11, 29])
@pytest.mark.parametrize("rows", [1, 7, 10, 11, 100])
def test_every_seam_scores_the_same_tokens(rows, first_scored):
    sample = TokenSample(tokens=SAMPLE.tokens, first_scored=first_scored)
    clean, noisy = fake_logits()(sample.tokens), fake_logits(0.5)(sample.tokens)
    scored = range(max(1, first_scored), len(sample.tokens))
    expected = [
        kl_of_logits(clean[token - 1 : token], noisy[token - 1 : token])[0] for token in scored
    ]
    baseline = keep_sample(sample, Chunked(fake_logits(), rows).logits_chunks(sample.tokens))
    whole = keep_logprobs(clean[scored[0] - 1 : -1], np.array(sample.tokens[scored[0] :]))
    for name, array in to_arrays([whole]).items():
        np.testing.assert_array_equal(to_arrays([baseline])[name], array)
    measured = compare_sample(baseline, sample, Chunked(fake_logits(0.5), rows))
    np.testing.assert_allclose(measured[:, Column.KL], expected, rtol=1e-4, atol=1e-6)
    for row, token in zip(measured, scored, strict=True):
        p = np.exp(noisy[token - 1].astype(np.float64))
        nll = -np.log(p[sample.tokens[token]] / p.sum())
        assert row[Column.ARTIFACT_NLL] == pytest.approx(nll)


def test_only_the_completion_counts():
    def broken_in_the_prompt(tokens):
        logits_TV = fake_logits()(tokens)
        logits_TV[: SAMPLE.first_scored - 1] = np.nan
        logits_TV[-1] = np.nan
        return logits_TV

    kept = keep_sample(SAMPLE, [broken_in_the_prompt(SAMPLE.tokens)])
    rows = compare_sample(kept, SAMPLE, Chunked(broken_in_the_prompt, 7))
    assert rows[:, Column.KL].max() < 1e-7


@pytest.mark.parametrize("first_scored", [0, 11])
def test_a_server_is_asked_for_the_scored_tokens(first_scored):
    sample = TokenSample(tokens=SAMPLE.tokens, first_scored=first_scored)
    server = Served(fake_logits(0.5))
    baseline = keep_sample(sample, [fake_logits()(sample.tokens)])
    rows = compare_sample(baseline, sample, server)
    assert server.asked == [(sample.tokens, max(1, first_scored))]
    streamed = compare_sample(baseline, sample, Chunked(fake_logits(0.5), 7))
    np.testing.assert_allclose(rows, streamed, rtol=1e-5, atol=1e-5)


def test_nothing_to_score_is_refused():
    sample = TokenSample(tokens=(1, 2), first_scored=2)
    with pytest.raises(DriftError, match="none of them to score"):
        compare_sample(keep_sample(SAMPLE, [fake_logits()(SAMPLE.tokens)]), sample, Chunked(1, 1))


def test_a_baseline_of_another_answer_is_refused_before_anything_runs():
    kept = keep_sample(SAMPLE, [fake_logits()(SAMPLE.tokens)])
    longer = TokenSample(tokens=(*SAMPLE.tokens, 1), first_scored=SAMPLE.first_scored)
    with pytest.raises(DriftError, match="19 positions of a trace of 20"):
        compare_sample(kept, longer, Chunked(None, 7))


@pytest.fixture(scope="module")
def tiny_r1():
    return Qwen2ForCausalLM.from_pretrained(TINY_R1, dtype=torch.float32).eval()


def logits_of(model):
    def logits(tokens):
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return logits


@pytest.mark.parametrize("damage", ["noise", "3 bits"])
def test_on_a_trained_model_it_is_the_full_kl(tiny_r1, damage):
    """The bound that the kept tokens give is as good as the whole vocabulary."""
    other = copy.deepcopy(tiny_r1)
    torch.manual_seed(0)
    for weight in other.parameters():
        if weight.ndim == 2 and damage == "noise":
            weight.data += 0.05 * weight.data.std() * torch.randn_like(weight)
        elif weight.ndim == 2:
            step = weight.data.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 3.5
            weight.data = (weight.data / step).round().clamp(-4, 3) * step
    tokenizer = load_tokenizer(TINY_R1)
    table, full = TokenTable(), []
    for number, question in enumerate(QUESTIONS):
        prompt = prompt_ids(tokenizer, question)
        tokens = (*prompt, *completion_ids(tokenizer, COMPLETION))
        sample = TokenSample(tokens=tokens, first_scored=len(prompt))
        clean = logits_of(tiny_r1)(tokens)
        rows = compare_sample(keep_sample(sample, [clean]), sample, Chunked(logits_of(other), 7))
        table.add(number, rows)
        scored = slice(len(prompt) - 1, -1)
        full.append(kl_of_logits(clean[scored], logits_of(other)(tokens)[scored]))
        assert (rows[:, Column.KL] <= full[-1] * (1 + 1e-5) + 1e-7).all()
        np.testing.assert_allclose(rows[:, Column.KL], full[-1], rtol=0.01, atol=1e-5)
    drift = table.summarize()
    assert drift.kl_mean_nats > 1e-3
    assert drift.kl_mean_nats == pytest.approx(np.concatenate(full).mean(), rel=1e-4)
    assert 0 <= drift.tail_mass <= NUCLEUS_TAIL + 1e-7


def test_rows_come_back_from_float32():
    """What the pipeline journals may be float32: the summary is the same but for rounding."""
    sample = keep_sample(SAMPLE, [fake_logits()(SAMPLE.tokens)])
    rows = measure_rows(sample, fake_logits(0.5)(SAMPLE.tokens)[10:-1], SAMPLE.next_tokens_T)
    again = rows.astype(np.float32).astype(np.float64)
    one, other = table_of({0: rows}).summarize(), table_of({0: again}).summarize()
    assert other.kl_mean_nats == pytest.approx(one.kl_mean_nats, rel=1e-6)
    assert other.top1_agreement == one.top1_agreement
