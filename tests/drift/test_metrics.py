"""Token-level metrics against scipy and slow loops."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import rel_entr

from tightfit.drift.metrics import DriftAccumulator, clustered_stderr, kl_divergence, log_softmax
from tightfit.errors import DriftError

VOCAB = 37


def random_logits(rng, n_tokens, scale=3.0):
    baseline = (rng.normal(size=(n_tokens, VOCAB)) * scale).astype(np.float32)
    noise = rng.normal(size=baseline.shape).astype(np.float32)
    return baseline, baseline + noise, rng.integers(0, VOCAB, n_tokens)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_log_softmax_and_kl_equal_scipy(offset):
    baseline, artifact, _ = random_logits(np.random.default_rng(0), 50)
    p = scipy_log_softmax((baseline + np.float32(offset)).astype(np.float64), axis=1)
    q = scipy_log_softmax((artifact + np.float32(offset)).astype(np.float64), axis=1)
    mine_p = log_softmax(baseline + np.float32(offset))
    mine_q = log_softmax(artifact + np.float32(offset))
    np.testing.assert_allclose(mine_p, p, rtol=0, atol=1e-12)
    expected = rel_entr(np.exp(p), np.exp(q)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(mine_p, mine_q), expected, rtol=1e-9, atol=1e-14)


def test_result_equals_a_slow_loop():
    rng = np.random.default_rng(1)
    accumulator = DriftAccumulator()
    kls, agrees, nll_p, nll_q = [], [], [], []
    for sample, n_tokens in enumerate((5, 1, 40, 17)):
        baseline, artifact, tokens = random_logits(rng, n_tokens)
        # In two pieces, as chunks of a stream arrive.
        for part in (slice(0, n_tokens // 2), slice(n_tokens // 2, None)):
            if len(tokens[part]):
                accumulator.update(baseline[part], artifact[part], tokens[part], sample=sample)
        for row in range(n_tokens):
            p = np.exp(baseline[row].astype(np.float64))
            p /= p.sum()
            q = np.exp(artifact[row].astype(np.float64))
            q /= q.sum()
            kls.append(sum(p[v] * np.log(p[v] / q[v]) for v in range(VOCAB)))
            agrees.append(p.argmax() == q.argmax())
            nll_p.append(-np.log(p[tokens[row]]))
            nll_q.append(-np.log(q[tokens[row]]))
    result = accumulator.result()
    assert (result.n_samples, result.n_tokens) == (4, 63)
    assert result.kl_mean_nats == pytest.approx(np.mean(kls))
    assert result.kl_median_nats == pytest.approx(np.median(kls))
    assert result.kl_p99_nats == pytest.approx(np.percentile(kls, 99))
    assert result.kl_max_nats == pytest.approx(max(kls))
    assert result.top1_agreement == pytest.approx(np.mean(agrees))
    assert result.baseline_perplexity == pytest.approx(np.exp(np.mean(nll_p)))
    assert result.artifact_perplexity == pytest.approx(np.exp(np.mean(nll_q)))
    json.dumps(asdict(result), allow_nan=False)


def test_equal_models_have_no_drift():
    baseline, _, tokens = random_logits(np.random.default_rng(2), 30)
    accumulator = DriftAccumulator()
    accumulator.update(baseline, baseline.copy(), tokens, sample=0)
    result = accumulator.result()
    assert result.kl_max_nats == 0
    assert result.top1_agreement == 1
    assert result.baseline_perplexity == result.artifact_perplexity
    assert result.kl_mean_stderr_nats is None  # one sample says nothing of the spread


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    data = [random_logits(rng, 25) for _ in range(3)]

    def measure():
        accumulator = DriftAccumulator()
        for sample, parts in enumerate(data):
            accumulator.update(*parts, sample=sample)
        return accumulator.result()

    whole = measure()
    monkeypatch.setattr("tightfit.drift.metrics.BLOCK_LOGITS", 4 * VOCAB)
    assert measure() == whole


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


def test_different_vocabularies_are_refused():
    with pytest.raises(DriftError, match="same vocabulary"):
        DriftAccumulator().update(
            np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32), np.zeros(2, int), sample=0
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["baseline", "artifact"])
def test_logits_that_are_no_numbers_are_refused(bad, side):
    baseline, artifact, tokens = random_logits(np.random.default_rng(5), 3)
    (baseline if side == "baseline" else artifact)[1, 4] = bad
    with pytest.raises(DriftError, match=f"the {side} produced"):
        DriftAccumulator().update(baseline, artifact, tokens, sample=0)


def test_nothing_scored_is_refused():
    with pytest.raises(DriftError, match="no position"):
        DriftAccumulator().result()
