"""vLLM's client against a stand-in of its `LLM` on the embedded model.

The real vLLM has not run here: it needs an NVIDIA GPU and a torch of its own. What is shown is that
tokens, seeds, stops and log-probabilities are passed right, not that vLLM's interface is as its
source says.
"""

import sys

import numpy as np
import pytest
from support import vllm_stand_in
from support.tiny_r1 import TINY_R1

from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.errors import LogprobsUnavailableError, MissingPackageError, RuntimeFailureError
from tightfit.runtimes.base import LogprobRuntime
from tightfit.runtimes.logprobs import log_softmax
from tightfit.runtimes.results import StopReason
from tightfit.runtimes.tokenizer import FolderTokenizer
from tightfit.runtimes.transformers import TransformersModel
from tightfit.runtimes.vllm import VllmModel, unavailable

CONTEXT_TOKENS = 160
FLOAT32_ERROR = 1e-4


@pytest.fixture
def model(monkeypatch):
    vllm_stand_in.install(monkeypatch)
    tokenizer = FolderTokenizer(TINY_R1)
    with VllmModel(TINY_R1, tokenizer=tokenizer, context_tokens=CONTEXT_TOKENS) as made:
        yield made


@pytest.fixture(scope="module")
def reference():
    with TransformersModel(TINY_R1, context_tokens=CONTEXT_TOKENS) as made:
        yield made


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TINY_R1)
    questions = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "What is $5 + 4$?")
    return [prompt_ids(tokenizer, question) for question in questions]


def engine(model):
    return model._llm.llm_engine


def test_greedy_completions_are_those_of_transformers(model, reference, prompts):
    told = []
    assert isinstance(model, LogprobRuntime)
    made = model.generate(
        prompts, max_tokens=40, seed=0, parallel=2, on_finished=lambda *each: told.append(each)
    )
    assert made == reference.generate(prompts, max_tokens=40, seed=0)
    assert {each.stop for each in made} >= {StopReason.END}
    assert sorted(told, key=lambda each: each[0]) == list(enumerate(made))
    assert engine(model).most_running == 2


def test_a_full_context_and_a_full_answer_are_told_apart(model, prompts):
    prompt = prompts[0] + [20] * (CONTEXT_TOKENS - 3 - len(prompts[0]))
    full = prompt + [20] * 3
    cut, none, short = model.generate([prompt, full, prompts[0]], max_tokens=5, seed=0)
    assert (cut.stop, len(cut.token_ids)) == (StopReason.CONTEXT, 3)
    assert (none.stop, none.token_ids) == (StopReason.CONTEXT, ())
    assert (short.stop, len(short.token_ids)) == (StopReason.LENGTH, 5)


def test_sampling_depends_on_the_seed_and_the_stream_only(model, prompts):
    def sample(chosen, streams, seed=1, parallel=3):
        made = model.generate(
            chosen, max_tokens=12, temperature=1.5, top_p=0.95, seed=seed, streams=streams,
            parallel=parallel,
        )  # fmt: skip
        return [each.token_ids for each in made]

    first = sample(prompts, [0, 1, 2])
    assert sample(prompts, [0, 1, 2], parallel=1) == first
    assert sample(prompts[1:], [1, 2]) == first[1:]
    assert sample(prompts, [0, 1, 2], seed=2) != first
    params = engine(model).params[0]
    assert (params.temperature, params.top_p, params.max_tokens) == (1.5, 0.95, 12)
    assert params.skip_special_tokens is False


def test_logprobs_are_those_of_transformers(model, reference, prompts):
    tokens = prompts[0] + reference.tokenize("19 + 90 = 109\n</think>\nThe answer is 118.")
    first = len(prompts[0])
    log_p_TV = log_softmax(reference.logits(tokens))[first - 1 : -1]
    found = model.token_logprobs(tokens, first)
    assert len(found) == len(tokens) - first
    assert found.top_ids_T.tolist() == log_p_TV.argmax(1).tolist()
    for t, following in enumerate(tokens[first:]):
        assert found.next_logprobs_T[t] == pytest.approx(log_p_TV[t, following], abs=FLOAT32_ERROR)
        row = found.rows(t, t + 1)
        assert row.logprobs_E == pytest.approx(log_p_TV[t, row.ids_E], abs=FLOAT32_ERROR)
        assert len(row.ids_E) in (64, 65)
        assert np.exp(row.logprobs_E.astype(np.float64)).sum() > 0.99


def test_missing_logprobs_are_an_error(model, monkeypatch):
    monkeypatch.setattr(vllm_stand_in.Engine, "_prompt_logprobs", lambda *_: None)
    with pytest.raises(LogprobsUnavailableError, match="no positions, 3 were"):
        model.token_logprobs([1, 2, 3], 1)


def test_what_is_under_way_is_aborted(model, prompts):
    def interrupt(_index, _generation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(
            [prompts[0], prompts[1]], max_tokens=60, seed=0, parallel=2, on_finished=interrupt
        )
    assert len(engine(model).aborted) == 1
    assert engine(model).running == {}
    # The next call is not disturbed by it.
    assert len(model.generate(prompts[:1], max_tokens=3, seed=0)[0].token_ids) == 3


def test_a_dying_engine(model, prompts):
    engine(model).fail_at_step = 3
    with pytest.raises(RuntimeFailureError, match=r"vLLM failed while it ran: .*EngineCore"):
        model.generate(prompts, max_tokens=60, seed=0)


def test_a_request_that_vllm_refuses(model, prompts, monkeypatch):
    monkeypatch.setitem(engine(model).options, "max_logprobs", 1)
    with pytest.raises(RuntimeFailureError, match="greater than max allowed"):
        model.token_logprobs(prompts[0], 1)
    assert engine(model).aborted == []


@pytest.mark.parametrize("prompt", [[], [3] * (CONTEXT_TOKENS + 1), [511, 512]])
def test_prompts_that_the_model_cannot_read(model, prompt):
    with pytest.raises(RuntimeFailureError, match=r"a sequence of|token ids from"):
        model.generate([prompt], max_tokens=3, seed=0)


def test_what_it_says_of_itself(model):
    assert model.name == "tiny-r1"
    assert model.vocab_size == 512
    assert model.tokenize("<think>1 + 1") == FolderTokenizer(TINY_R1).encode("<think>1 + 1")
    assert model.system_info.label.startswith("vLLM 0.0-stand-in")
    assert model.system_info.device == "NVIDIA Stand-in"
    model.close()
    with pytest.raises(RuntimeFailureError, match="was closed"):
        model.generate([[1]], max_tokens=1, seed=0)


def test_a_model_that_does_not_load(monkeypatch, tmp_path):
    vllm_stand_in.install(monkeypatch)
    with pytest.raises(RuntimeFailureError, match="vLLM does not load"):
        VllmModel(tmp_path, tokenizer=FolderTokenizer(TINY_R1), context_tokens=64)


def test_without_the_package_or_a_gpu(monkeypatch):
    vllm_stand_in.install(monkeypatch)
    assert unavailable() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "needs an NVIDIA GPU" in str(unavailable())
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = unavailable()
    assert isinstance(missing, MissingPackageError)
    assert "pip install vllm" in str(missing)
    with pytest.raises(MissingPackageError):
        VllmModel("any", tokenizer=FolderTokenizer(TINY_R1), context_tokens=64)
