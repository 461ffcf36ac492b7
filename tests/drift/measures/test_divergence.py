"""KL over the whole vocabulary against scipy."""

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import rel_entr

from tightfit.drift.measures import divergence
from tightfit.drift.measures.divergence import kl_divergence, kl_of_logits
from tightfit.errors import DriftError
from tightfit.runtimes.logprobs import log_softmax

VOCAB = 37


def random_logits(seed, n_tokens=50, scale=3.0):
    rng = np.random.default_rng(seed)
    baseline = (rng.normal(size=(n_tokens, VOCAB)) * scale).astype(np.float32)
    return baseline, baseline + rng.normal(size=baseline.shape).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_kl_equals_scipy(offset):
    baseline, artifact = (part + np.float32(offset) for part in random_logits(0))
    p = scipy_log_softmax(baseline.astype(np.float64), axis=1)
    q = scipy_log_softmax(artifact.astype(np.float64), axis=1)
    expected = rel_entr(np.exp(p), np.exp(q)).sum(axis=1)
    assert expected.min() > 1e-3
    kl = kl_divergence(log_softmax(baseline), log_softmax(artifact))
    np.testing.assert_allclose(kl, expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(kl_of_logits(baseline, artifact), kl)


def test_equal_models_have_none():
    baseline, _ = random_logits(1)
    assert (kl_of_logits(baseline, baseline.copy()) == 0).all()


def test_blocks_do_not_change_it(monkeypatch):
    whole = kl_of_logits(*random_logits(2))
    monkeypatch.setattr(divergence, "BLOCK_LOGITS", 4 * VOCAB)
    np.testing.assert_array_equal(kl_of_logits(*random_logits(2)), whole)


def test_different_vocabularies_are_refused():
    with pytest.raises(DriftError, match="same vocabulary"):
        kl_of_logits(np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["baseline", "artifact"])
def test_logits_that_are_no_numbers_are_refused(bad, side):
    baseline, artifact = random_logits(3)
    (baseline if side == "baseline" else artifact)[1, 4] = bad
    with pytest.raises(DriftError, match=f"the {side} produced"):
        kl_of_logits(baseline, artifact)
