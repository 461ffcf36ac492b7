"""The KL of kept tokens against slow loops, and against the full KL that it stands for."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax

from tightfit.drift.measures import partition
from tightfit.drift.measures.divergence import kl_of_logits
from tightfit.drift.measures.partition import Column, measure_rows
from tightfit.errors import DriftError
from tightfit.runtimes.logprobs import NUCLEUS_TAIL, NUCLEUS_TOKENS, TokenLogprobs, keep_logprobs

ROUNDING = 1e-8
"""Nats by which float32 log-probabilities may move a KL here."""


def logits_pair(vocabulary, *, steepness, noise, n=30, seed=0):
    """Distributions that fall with a power of the rank, as a language model's, and a noisy copy."""
    rng = np.random.default_rng(seed)
    ranks = 1 + rng.permuted(np.tile(np.arange(vocabulary), (n, 1)), axis=1)
    baseline = (-rng.uniform(*steepness, (n, 1)) * np.log(ranks)).astype(np.float32)
    artifact = baseline + noise * rng.normal(size=baseline.shape).astype(np.float32)
    return baseline, artifact, rng.integers(0, vocabulary, n)


def top_tokens(logits, tokens, n_top):
    """What a server with `top_logprobs` gives: sorted top tokens and the next one's own."""
    logprobs = scipy_log_softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, :n_top]
    return TokenLogprobs(
        offsets=np.arange(len(logits) + 1) * n_top,
        ids_E=order.reshape(-1).astype(np.int32),
        logprobs_E=np.take_along_axis(logprobs, order, axis=1).reshape(-1).astype(np.float32),
        next_logprobs_T=logprobs[np.arange(len(logits)), tokens].astype(np.float32),
    )


def slow_partition(p_log, q_log, known):
    """(KL of the partition, KL within the rest weighted by its mass, mass of the rest)."""
    rest = [token for token in range(len(p_log)) if token not in known]
    kl = sum(math.exp(p_log[token]) * (p_log[token] - q_log[token]) for token in known)
    r = math.fsum(math.exp(p_log[token]) for token in rest)
    s = math.fsum(math.exp(q_log[token]) for token in rest)
    if not rest:
        return kl, 0.0, 0.0
    within = sum(
        math.exp(p_log[token]) * (p_log[token] - math.log(r) - (q_log[token] - math.log(s)))
        for token in rest
    )
    return kl + r * math.log(r / s), within, r


CASES = {
    "peaked": {"vocabulary": 3000, "steepness": (3.5, 8), "noise": 0.3},
    "sure": {"vocabulary": 3000, "steepness": (8, 20), "noise": 1.0},
    "flat": {"vocabulary": 5000, "steepness": (0, 1), "noise": 0.3},
    "small": {"vocabulary": 20, "steepness": (0.5, 2), "noise": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_every_column_equals_a_slow_loop(case):
    baseline, artifact, tokens = logits_pair(**CASES[case])
    kept = keep_logprobs(baseline, tokens)
    rows = measure_rows(kept, artifact, tokens)
    for t, row in enumerate(rows):
        p = scipy_log_softmax(baseline[t].astype(np.float64))
        q = scipy_log_softmax(artifact[t].astype(np.float64))
        known = set(kept.rows(t, t + 1).ids_E.tolist())
        kl, within, rest = slow_partition(p, q, known)
        assert row[Column.KL] == pytest.approx(kl, abs=ROUNDING, rel=1e-6)
        # The chain rule of the KL: what the partition leaves out is the divergence in the rest.
        full = math.fsum(np.exp(p) * (p - q))
        assert kl + within == pytest.approx(full, abs=1e-12)
        assert row[Column.TAIL_MASS] == pytest.approx(rest, abs=1e-6)
        assert row[Column.AGREES] == (p.argmax() == q.argmax())
        assert row[Column.BASELINE_NLL] == pytest.approx(-p[tokens[t]], rel=1e-6, abs=1e-12)
        assert row[Column.ARTIFACT_NLL] == pytest.approx(-q[tokens[t]], rel=1e-9, abs=1e-12)
        assert row[Column.BASELINE_TOP] == pytest.approx(np.exp(p.max()), rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_it_is_at_most_the_full_kl_and_within_a_hundredth(case):
    baseline, artifact, tokens = logits_pair(**CASES[case], n=60, seed=1)
    rows = measure_rows(keep_logprobs(baseline, tokens), artifact, tokens)
    full = kl_of_logits(baseline, artifact)
    kl, tail = rows[:, Column.KL], rows[:, Column.TAIL_MASS]
    assert (kl <= full * (1 + 1e-6) + ROUNDING).all()
    # Only where more than `NUCLEUS_TOKENS` matter does the tail hold a part of the drift.
    if case == "flat":
        assert (tail > 0.05).all()
        assert (full - kl <= 2 * tail * full).all()
    else:
        assert (tail <= NUCLEUS_TAIL + 1e-7).all()
        assert (full - kl <= 0.01 * full + NUCLEUS_TAIL).all()
        assert kl.mean() == pytest.approx(full.mean(), rel=1e-4)


def test_equal_models_do_not_drift():
    for case in CASES.values():
        baseline, _, tokens = logits_pair(**case)
        rows = measure_rows(keep_logprobs(baseline, tokens), baseline.copy(), tokens)
        assert rows[:, Column.KL].max() < ROUNDING
        assert (rows[:, Column.AGREES] == 1).all()


def test_a_tail_that_underflows_is_finite():
    baseline = np.zeros((1, 5000), np.float32)
    baseline[0, 0] = 23  # the others have a mass of 5e-7
    artifact = np.full((1, 5000), -2000, np.float32)
    artifact[0, 0] = 0
    rows = measure_rows(keep_logprobs(baseline, np.array([0])), artifact, np.array([0]))
    assert 1e-6 < rows[0, Column.KL] < 1e-3


@pytest.mark.parametrize("n_top", [1, 5, 20])
def test_a_server_s_top_tokens_equal_a_slow_loop(n_top):
    baseline, artifact, tokens = logits_pair(vocabulary=400, steepness=(1, 4), noise=1.0, n=80)
    kept = keep_logprobs(baseline, tokens)
    served = top_tokens(artifact, tokens, n_top)
    rows = measure_rows(kept, served, tokens)
    full = kl_of_logits(baseline, artifact)
    for t, row in enumerate(rows):
        p = scipy_log_softmax(baseline[t].astype(np.float64))
        q = scipy_log_softmax(artifact[t].astype(np.float64))
        one = kept.rows(t, t + 1).ids_E.tolist()
        known = set(one) & set(served.rows(t, t + 1).ids_E.tolist())
        kl, _, rest = slow_partition(p, q, known)
        assert row[Column.KL] == pytest.approx(kl, abs=1e-6, rel=1e-5)
        assert row[Column.TAIL_MASS] == pytest.approx(rest, abs=1e-6)
        assert row[Column.AGREES] == (p.argmax() == q.argmax())
        assert row[Column.ARTIFACT_NLL] == pytest.approx(-q[tokens[t]], rel=1e-6, abs=1e-7)
    assert (rows[:, Column.KL] <= full + 1e-6).all()


def test_no_common_token_says_nothing():
    def only(token):
        return TokenLogprobs(
            offsets=np.array([0, 1]),
            ids_E=np.array([token], np.int32),
            logprobs_E=np.array([-0.1], np.float32),
            next_logprobs_T=np.array([-0.1], np.float32),
        )

    (row,) = measure_rows(only(3), only(4), np.array([3]))
    assert (row[Column.KL], row[Column.TAIL_MASS], row[Column.AGREES]) == (0, 1, 0)


def test_equal_top_tokens_do_not_drift():
    baseline, _, tokens = logits_pair(vocabulary=3000, steepness=(1, 8), noise=0)
    served = top_tokens(baseline, tokens, 20)
    assert measure_rows(served, served, tokens)[:, Column.KL].max() < 1e-6
    whole = keep_logprobs(baseline, tokens)
    assert measure_rows(whole, whole, tokens)[:, Column.KL].max() < 1e-6


def test_blocks_do_not_change_the_rows(monkeypatch):
    baseline, artifact, tokens = logits_pair(**CASES["peaked"])
    kept = keep_logprobs(baseline, tokens)
    whole = measure_rows(kept, artifact, tokens)
    monkeypatch.setattr(partition, "BLOCK_LOGITS", 4 * baseline.shape[1])
    np.testing.assert_array_equal(measure_rows(kept, artifact, tokens), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_artifact_s_logits_that_are_no_numbers_are_refused(bad):
    baseline, artifact, tokens = logits_pair(**CASES["small"])
    artifact[1, 4] = bad
    with pytest.raises(DriftError, match="the artifact produced"):
        measure_rows(keep_logprobs(baseline, tokens), artifact, tokens)


def test_a_baseline_of_more_tokens_is_refused():
    baseline, artifact, tokens = logits_pair(**CASES["flat"])
    with pytest.raises(DriftError, match="vocabulary of 100 in the artifact"):
        measure_rows(keep_logprobs(baseline, tokens), artifact[:, :100], tokens)


def test_other_positions_are_refused():
    baseline, artifact, tokens = logits_pair(**CASES["small"])
    kept = keep_logprobs(baseline, tokens)
    with pytest.raises(DriftError, match="30 positions of the baseline, 29 of the artifact"):
        measure_rows(kept, artifact[1:], tokens)
    with pytest.raises(DriftError, match="30 positions of the baseline, 29 of the artifact"):
        measure_rows(kept, kept.rows(0, 29), tokens)


def test_the_flat_case_is_cut():
    baseline, _, tokens = logits_pair(**CASES["flat"])
    assert (keep_logprobs(baseline, tokens).kept_T == NUCLEUS_TOKENS).all()
