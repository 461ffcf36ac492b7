"""Nucleus sampling against a slow reference of its definition."""

import numpy as np
import pytest

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.sampling import Sampling, choose_token

N_DRAWS = 20_000


def nucleus_reference(logits_V, temperature, top_p):
    """Probabilities of the smallest set of likeliest tokens that reaches top_p."""
    p_V = np.exp((logits_V - logits_V.max()) / temperature)
    p_V /= p_V.sum()
    kept, total = {}, 0.0
    for token in sorted(range(len(p_V)), key=lambda token: -p_V[token]):
        kept[token] = p_V[token]
        total += p_V[token]
        if total >= top_p:
            break
    return {token: p / total for token, p in kept.items()}


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.95), (2.0, 0.5), (1.0, 0.01)]
)
def test_draws_follow_the_nucleus(temperature, top_p):
    logits_V = np.random.default_rng(3).normal(size=12).astype(np.float32) * 2
    sampling = Sampling(max_tokens=1, temperature=temperature, top_p=top_p, seed=0, streams=(0,))
    random = np.random.default_rng(4)
    draws = [choose_token(logits_V, sampling, random) for _ in range(N_DRAWS)]
    expected = nucleus_reference(logits_V.astype(np.float64), temperature, top_p)
    assert set(draws) <= set(expected)
    for token, p in expected.items():
        spread = 5 * np.sqrt(p * (1 - p) / N_DRAWS)
        assert abs(draws.count(token) / N_DRAWS - p) <= spread + 1e-12


def test_temperature_zero_takes_the_largest():
    sampling = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, seed=0, streams=(0,))
    logits_V = np.array([0.0, 3.0, 2.9], np.float32)
    assert choose_token(logits_V, sampling, np.random.default_rng(0)) == 1


def test_a_stream_is_drawn_by_its_number():
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=1.0, seed=7, streams=(4, 9))
    draws = [sampling.random(index).random() for index in (0, 1)]
    assert draws == [np.random.default_rng([7, stream]).random() for stream in (4, 9)]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_are_no_choice(temperature, wrong):
    sampling = Sampling(max_tokens=1, temperature=temperature, top_p=0.95, seed=0, streams=(0,))
    logits = np.array([1.0, wrong, -np.inf], np.float32)
    with pytest.raises(RuntimeFailureError, match="NaN or infinite"):
        choose_token(logits, sampling, sampling.random(0))
    ruled_out = np.array([1.0, -np.inf, -np.inf], np.float32)
    assert choose_token(ruled_out, sampling, sampling.random(0)) == 0
