"""Kept distributions against a sort of every row, and damage of what is stored."""

import io
import time

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes import logprobs as module
from tightfit.runtimes.logprobs import (
    NUCLEUS_TAIL,
    NUCLEUS_TOKENS,
    concatenate,
    from_arrays,
    keep_logprobs,
    log_softmax,
    to_arrays,
)


def some_logits(n=40, vocabulary=5000, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(n, vocabulary)) * scale).astype(np.float32)
    logits[np.arange(n), rng.integers(0, vocabulary, n)] += rng.uniform(0, 30, n)
    return logits, rng.integers(0, vocabulary, n)


def slowly(logits_V, at_most=NUCLEUS_TOKENS):
    """Kept ids and all log-probabilities of a position, by sorting everything."""
    logprobs = scipy_log_softmax(logits_V.astype(np.float64))
    order = sorted(range(len(logits_V)), key=lambda token: (-logits_V[token], token))
    mass, kept = 0.0, []
    for token in order:
        kept.append(token)
        mass += np.exp(logprobs[token])
        if mass >= 1 - NUCLEUS_TAIL or len(kept) == at_most:
            break
    return kept, logprobs


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_log_softmax_is_scipys(offset):
    logits, _ = some_logits(vocabulary=97)
    logits += np.float32(offset)
    expected = scipy_log_softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 8.0])
def test_a_position_keeps_the_fewest_most_probable_tokens(scale):
    logits, tokens = some_logits(scale=scale)
    kept = keep_logprobs(logits, tokens)
    assert len(kept) == len(logits)
    sizes = set()
    for row in range(len(logits)):
        ids, logprobs = slowly(logits[row])
        one = kept.rows(row, row + 1)
        assert one.ids_E.tolist() == ids
        np.testing.assert_array_equal(one.logprobs_E, logprobs[ids].astype(np.float32))
        assert one.next_logprobs_T[0] == np.float32(logprobs[tokens[row]])
        assert kept.top_ids_T[row] == logits[row].argmax()
        sizes.add(len(ids))
    assert len(sizes) > 1 or sizes == {NUCLEUS_TOKENS}


def test_certain_and_uniform_positions():
    logits = np.zeros((3, 9000), np.float32)
    logits[0, 77] = 200
    logits[1, [5, 8000]] = 60
    kept = keep_logprobs(logits, np.array([77, 5, 0]))
    assert kept.kept_T.tolist() == [1, 2, NUCLEUS_TOKENS]
    # Equal ones in the order of their ids.
    expected = [77, 5, 8000, *range(NUCLEUS_TOKENS)]
    assert kept.ids_E.tolist() == expected
    assert kept.logprobs_E[:3] == pytest.approx([0, np.log(0.5), np.log(0.5)])
    assert kept.next_logprobs_T == pytest.approx([0, np.log(0.5), -np.log(9000)])


def test_a_small_vocabulary_is_kept_whole_where_it_must_be():
    kept = keep_logprobs(np.zeros((1, 7), np.float32), np.array([3]))
    assert kept.ids_E.tolist() == list(range(7))


def test_blocks_and_pieces_do_not_change_the_result(monkeypatch):
    logits, tokens = some_logits(vocabulary=300)
    whole = to_arrays([keep_logprobs(logits, tokens)])
    monkeypatch.setattr(module, "BLOCK_LOGITS", 7 * 300)
    parts = [keep_logprobs(logits[a:b], tokens[a:b]) for a, b in ((0, 1), (1, 30), (30, 40))]
    pieces = to_arrays([concatenate(parts)])
    for name, array in whole.items():
        np.testing.assert_array_equal(pieces[name], array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits, tokens = some_logits(n=3)
    logits[1, 4] = bad
    with pytest.raises(RuntimeFailureError, match="NaN or infinite"):
        keep_logprobs(logits, tokens)


def stored_traces():
    traces = []
    for seed, n in enumerate((5, 1, 12)):
        traces.append(keep_logprobs(*some_logits(n=n, vocabulary=400, seed=seed)))
    return traces


def test_traces_come_back_from_a_file_as_they_were():
    traces = stored_traces()
    file = io.BytesIO()
    np.savez(file, **to_arrays(traces))
    file.seek(0)
    with np.load(file) as arrays:
        again = from_arrays(arrays)
    assert [len(trace) for trace in again] == [5, 1, 12]
    for one, other in zip(traces, again, strict=True):
        for name in ("offsets", "ids_E", "logprobs_E", "next_logprobs_T"):
            before, after = getattr(one, name), getattr(other, name)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def change(arrays, name, index, value):
    arrays[name][index] = value


DAMAGE = {
    "no array": lambda arrays: arrays.pop("ids_E"),
    "expected int32": lambda arrays: arrays.update(ids_E=arrays["ids_E"].astype(np.int64)),
    r"\(n,\)": lambda arrays: arrays.update(kept_T=arrays["kept_T"][None]),
    "kept_T has 0": lambda arrays: change(arrays, "kept_T", 3, 0),
    "positions_N has -1": lambda arrays: change(arrays, "positions_N", 0, -1),
    "kept_T has 18 entries, expected 19": lambda arrays: change(arrays, "positions_N", 1, 2),
    "ids_E has": lambda arrays: change(arrays, "kept_T", 3, arrays["kept_T"][3] + 1),
    "logprobs_E has": lambda arrays: arrays.update(logprobs_E=arrays["logprobs_E"][:-1]),
    "next_logprobs_T has 17": lambda arrays: arrays.update(
        next_logprobs_T=arrays["next_logprobs_T"][1:]
    ),
    "ids_E has -3": lambda arrays: change(arrays, "ids_E", 2, -3),
    "logprobs_E has 0.5": lambda arrays: change(arrays, "logprobs_E", 0, 0.5),
    "logprobs_E has nan": lambda arrays: change(arrays, "logprobs_E", 0, np.nan),
    "next_logprobs_T has -inf": lambda arrays: change(arrays, "next_logprobs_T", 4, -np.inf),
    "rises": lambda arrays: change(arrays, "logprobs_E", arrays["kept_T"][0] - 1, -1e-9),
    "a probability of": lambda arrays: change(arrays, "logprobs_E", slice(0, 2), -0.1),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(message):
    arrays = to_arrays(stored_traces())
    from_arrays(arrays)
    DAMAGE[message](arrays)
    with pytest.raises(ValueError, match=message):
        from_arrays(arrays)


@pytest.mark.slow
def test_a_large_vocabulary_takes_about_a_millisecond_a_position():
    logits, tokens = some_logits(n=64, vocabulary=152_064, scale=2.5)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        keep_logprobs(logits, tokens)
        seconds.append(time.process_time() - start)
    # Ten times what it takes, for machines without AVX-512.
    assert min(seconds) / len(tokens) < 10e-3
