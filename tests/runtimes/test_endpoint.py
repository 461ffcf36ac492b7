"""The client of OpenAI-compatible servers against a stand-in of vLLM, SGLang and TGI, and against
llama.cpp's own server, which we did not write."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.completion_server import Behaviour, bigram, serve
from support.tiny_r1 import TINY_R1

from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.errors import LogprobsUnavailableError, RuntimeFailureError
from tightfit.runtimes.base import LogprobRuntime
from tightfit.runtimes.endpoint import Endpoint, Retries
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.logprobs import log_softmax
from tightfit.runtimes.results import StopReason
from tightfit.runtimes.tokenizer import FolderTokenizer

VOCABULARY = 512
QUESTIONS = ("What is 7", "What is $19 + 99$", "3x", "Solve $3x + 4 = 19$ for $x$.")
TOKENIZER = FolderTokenizer(TINY_R1)
PROMPTS = [TOKENIZER.encode(f"<｜begin▁of▁sentence｜><｜User｜>{each}") for each in QUESTIONS]
FAST = Retries(attempts=4, first_wait_s=0.01)


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


@pytest.fixture(scope="module")
def logits(tokenizer):
    return bigram(tokenizer, VOCABULARY)


@pytest.fixture
def served(tokenizer, logits):
    with serve(logits, tokenizer) as server:
        yield server


def connect(server, tokenizer, **options):
    options = {"context_tokens": 200, "retries": FAST} | options
    return Endpoint(server.url, tokenizer=tokenizer, **options)


def greedy(logits, prompt, max_tokens, end_ids):
    """One token at a time: slow and obvious."""
    made = []
    while len(made) < max_tokens:
        token = int(logits([*prompt, *made])[-1].argmax())
        if token in end_ids:
            return made, StopReason.END
        made.append(token)
    return made, StopReason.LENGTH


def check_greedy(endpoint, tokenizer, logits):
    made = endpoint.generate(PROMPTS, max_tokens=40, seed=0, parallel=3)
    assert {each.stop for each in made} == {StopReason.END, StopReason.LENGTH}
    for prompt, each in zip(PROMPTS, made, strict=True):
        tokens, stop = greedy(logits, prompt, 40, tokenizer.end_ids)
        assert (each.text, each.stop) == (tokenizer.decode(tokens), stop)
    return made


def test_greedy_answers_are_the_models_own(served, tokenizer, logits):
    with connect(served, tokenizer) as endpoint:
        assert isinstance(endpoint, LogprobRuntime)
        made = check_greedy(endpoint, tokenizer, logits)
        for prompt, each in zip(PROMPTS, made, strict=True):
            assert list(each.token_ids) == greedy(logits, prompt, 40, tokenizer.end_ids)[0]
    assert endpoint.name == "tiny"
    assert endpoint.system_info.label.startswith("vLLM 0.99 at 127.0.0.1:")
    assert endpoint.system_info.facts["completions"] == "token ids"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1_or_not(served, tokenizer, suffix):
    with Endpoint(served.url + suffix, tokenizer=tokenizer, context_tokens=64) as endpoint:
        assert endpoint.system_info.facts["url"] == f"{served.url}/v1"


def test_without_token_ids_the_text_is_encoded_and_its_end_marker_removed(tokenizer, logits):
    behaviour = Behaviour(owner="tgi", returns_ids=False, max_model_len=None)
    with serve(logits, tokenizer, behaviour) as server, connect(server, tokenizer) as endpoint:
        made = check_greedy(endpoint, tokenizer, logits)
    assert any(each.stop is StopReason.END for each in made)
    for each in made:
        assert list(each.token_ids) == tokenizer.encode(each.text)
    assert endpoint.system_info.facts["completions"] == "text"


def test_what_a_server_refuses_is_said_once_and_left_out(tokenizer, logits):
    first, warnings = PROMPTS[0][0], []
    behaviour = Behaviour(
        takes_ids=False, takes_extensions=False, returns_ids=False, adds_token=first
    )
    with (
        serve(logits, tokenizer, behaviour) as server,
        connect(server, tokenizer, warn=warnings.append) as endpoint,
    ):
        check_greedy(endpoint, tokenizer, logits)
        asked = server.bodies[-len(PROMPTS) :]
        with pytest.raises(LogprobsUnavailableError, match="text only"):
            endpoint.token_logprobs(PROMPTS[0], 1)
    # The server adds its first token itself: ours must not double it.
    assert {body["prompt"] for body in asked} == {tokenizer.decode(each[1:]) for each in PROMPTS}
    assert len(warnings) == 3
    assert "expected a string" in warnings[0]
    assert "special tokens may be missing" in warnings[1]
    assert "first token of each prompt is left out" in warnings[2]
    assert endpoint.system_info.facts["prompts"] == "text"
    assert endpoint.system_info.facts["extensions"] == "refused"


def test_a_count_of_tokens_that_differs_is_said(tokenizer, logits):
    warnings = []
    behaviour = Behaviour(takes_ids=False)
    other = FolderTokenizer(TINY_R1)
    other.encode = lambda text: [token for token in tokenizer.encode(text) for _ in range(2)]
    with serve(logits, other, behaviour) as server:
        connect(server, tokenizer, warn=warnings.append)
    assert "tokens in a prompt of" in warnings[-1]


def test_requests_hold_the_protocol_and_a_seed_of_their_own(served, tokenizer):
    with connect(served, tokenizer) as endpoint:
        served.bodies.clear()
        endpoint.generate(
            PROMPTS, max_tokens=7, temperature=0.6, top_p=0.95, seed=3, streams=[0, 1, 8, 9]
        )
        seeds = {tuple(body["prompt"]): body["seed"] for body in served.bodies}
        for body in served.bodies:
            assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.6, 0.95, 7)
            assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
            assert body["skip_special_tokens"] is False
            assert 0 <= body["seed"] < 2**31
        assert len(set(seeds.values())) == len(PROMPTS)
        served.bodies.clear()
        # The stream, not the place in the list, decides.
        endpoint.generate(PROMPTS[2:], max_tokens=7, temperature=0.6, seed=3, streams=[8, 9])
        assert {body["seed"] for body in served.bodies} == {seeds[tuple(p)] for p in PROMPTS[2:]}


def test_sampling_depends_on_the_seed_only(served, tokenizer):
    with connect(served, tokenizer) as endpoint:

        def sample(seed, parallel):
            made = endpoint.generate(
                PROMPTS, max_tokens=20, temperature=1.0, seed=seed, parallel=parallel
            )
            return [each.token_ids for each in made]

        assert sample(1, 1) == sample(1, 4)
        assert sample(1, 4) != sample(2, 4)


def test_parallel_requests_are_handed_on_one_by_one_in_the_calling_thread(tokenizer, logits):
    told = []
    with (
        serve(logits, tokenizer, Behaviour(delay_s=0.3)) as server,
        connect(server, tokenizer) as endpoint,
    ):
        made = endpoint.generate(
            PROMPTS * 3,
            max_tokens=5,
            seed=0,
            parallel=3,
            on_finished=lambda *what: told.append((*what, threading.get_ident())),
        )
    assert 1 < server.most_at_once <= 3
    assert sorted(index for index, _, _ in told) == list(range(12))
    assert all(generation is made[index] for index, generation, _ in told)
    assert {thread for _, _, thread in told} == {threading.get_ident()}


def test_a_full_context_ends_a_completion(served, tokenizer):
    with connect(served, tokenizer, context_tokens=10) as endpoint:
        prompt = PROMPTS[0]
        short, full = endpoint.generate([prompt, [3] * 10], max_tokens=30, seed=0)
    assert (short.stop, len(short.token_ids)) == (StopReason.CONTEXT, 10 - len(prompt))
    assert (full.stop, full.token_ids, full.text) == (StopReason.CONTEXT, (), "")


def test_the_servers_context_holds_where_it_is_less(served, tokenizer):
    warnings = []
    with connect(served, tokenizer, context_tokens=1000, warn=warnings.append) as endpoint:
        assert endpoint.system_info.context_tokens == 256
        with pytest.raises(RuntimeFailureError, match="257 tokens"):
            endpoint.generate([[3] * 257], max_tokens=1, seed=0)
    assert "context is 256 tokens, 1000 were asked for" in warnings[0]


@pytest.mark.parametrize("scores", ["prompt_logprobs", "echo_ids", "echo_strings"])
@pytest.mark.parametrize(("max_logprobs", "n_top"), [(20, 20), (6, 5)])
def test_logprobs_are_the_models_own(tokenizer, logits, scores, max_logprobs, n_top):
    tokens, first_scored = tokenizer.encode("7 * 8 = 56\n</think>\nThe answer is $56$."), 3
    log_p_TV = log_softmax(logits(tokens).astype(np.float32))[first_scored - 1 : -1]
    behaviour = Behaviour(scores=scores, max_logprobs=max_logprobs)
    with serve(logits, tokenizer, behaviour) as server, connect(server, tokenizer) as endpoint:
        found = endpoint.token_logprobs(tokens, first_scored)
        again = endpoint.token_logprobs(tokens, first_scored)
    assert np.array_equal(found.ids_E, again.ids_E)
    assert len(found) == len(tokens) - first_scored
    assert found.top_ids_T.tolist() == log_p_TV.argmax(1).tolist()
    for t, following in enumerate(tokens[first_scored:]):
        assert found.next_logprobs_T[t] == pytest.approx(log_p_TV[t, following], abs=1e-5)
        row = found.rows(t, t + 1)
        assert row.logprobs_E == pytest.approx(log_p_TV[t, row.ids_E], abs=1e-5)
        expected = {following, *np.argsort(-log_p_TV[t])[:n_top].tolist()}
        if scores == "echo_strings":
            # Of a string that stands for several tokens nothing is known.
            assert following in row.ids_E
            assert set(row.ids_E.tolist()) <= expected
            assert len(row.ids_E) > n_top / 2
        else:
            assert set(row.ids_E.tolist()) == expected


def test_the_way_that_worked_is_kept(tokenizer, logits):
    with (
        serve(logits, tokenizer, Behaviour(scores="echo_ids")) as server,
        connect(server, tokenizer) as endpoint,
    ):
        server.bodies.clear()
        endpoint.token_logprobs([1, 2, 3], 1)
        endpoint.token_logprobs([1, 2, 3], 1)
    assert [bool(body.get("echo")) for body in server.bodies] == [False, True, True]


@pytest.mark.parametrize("scores", ["ignored", "refused"])
def test_no_logprobs_is_an_error_with_the_servers_answer(tokenizer, logits, scores):
    with (
        serve(logits, tokenizer, Behaviour(scores=scores)) as server,
        connect(server, tokenizer) as endpoint,
        pytest.raises(LogprobsUnavailableError, match="gives no log-prob") as caught,
    ):
        endpoint.token_logprobs([1, 2, 3], 1)
    assert ("no echo" in str(caught.value)) == (scores == "refused")


def test_tokenize_asks_the_server(tokenizer, logits):
    with serve(logits, tokenizer) as server, connect(server, tokenizer) as endpoint:
        assert endpoint.tokenize("<think>1") == tokenizer.encode("<think>1")
    with (
        serve(logits, tokenizer, Behaviour(tokenizes=False)) as server,
        connect(server, tokenizer) as endpoint,
    ):
        assert endpoint.tokenize("<think>1") is None


def test_an_interruption_breaks_off_what_is_under_way(tokenizer, logits):
    """Ctrl-C in a process of its own: it ends at once, and the server sees the clients leave."""
    script = """
import sys
from tightfit.runtimes.endpoint import Endpoint
from tightfit.runtimes.tokenizer import FolderTokenizer
from pathlib import Path
endpoint = Endpoint(sys.argv[1], tokenizer=FolderTokenizer(Path(sys.argv[2])), context_tokens=64)
print("ready", flush=True)
endpoint.generate([[3, 7]] * 8, max_tokens=5, seed=0, parallel=4)
"""
    with serve(logits, tokenizer) as server:
        command = [sys.executable, "-c", script, server.url, str(TINY_R1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            server.behaviour.delay_s = 60.0
            wait_until(lambda: server.at_once >= 4)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=15)
        assert b"KeyboardInterrupt" in errors
        wait_until(lambda: server.gone == 4)
        # One for first contact; the four that were waiting are never sent.
        assert len(server.bodies) == 1 + 4


def wait_until(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LLAMACPP_SERVER = """
import sys
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx = 2 * 768
parameters.n_parallel = 2
parameters.cpuparams.n_threads = 1
parameters.warmup = False
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_llamacpps_own_server_gives_what_our_runtime_gives(tiny_gguf, tokenizer):
    """A server that we did not write; in a child, since llama.cpp may abort its process."""
    questions = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "Solve $3x + 4 = 19$ for $x$.")
    prompts = [prompt_ids(load_tokenizer(TINY_R1), question) for question in questions]
    with LlamaCpp(tiny_gguf, context_tokens=768, threads=1) as runtime:
        expected = runtime.generate(prompts, max_tokens=200, seed=0)
        ids = runtime.tokenize("<think>1 + 1</think>")
    command = [sys.executable, "-c", LLAMACPP_SERVER, str(tiny_gguf)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
    ) as child:
        try:
            url = child.stdout.readline().decode().strip()
            with Endpoint(url, tokenizer=tokenizer, context_tokens=768) as endpoint:
                made = endpoint.generate(prompts, max_tokens=200, seed=0, parallel=2)
                assert endpoint.tokenize("<think>1 + 1</think>") == ids
                with pytest.raises(LogprobsUnavailableError):
                    endpoint.token_logprobs(prompts[0], 2)
                sampled = [
                    endpoint.generate(prompts, max_tokens=30, temperature=1.5, seed=seed)
                    for seed in (1, 1, 2)
                ]
        finally:
            child.stdin.close()
    assert [each.text for each in made] == [each.text for each in expected]
    assert [each.stop for each in made] == [each.stop for each in expected]
    assert all("</think>" in each.text for each in made)
    assert endpoint.system_info.label.startswith("llama.cpp server")
    assert endpoint.system_info.facts["prompts"] == "token ids"
    assert sampled[0] == sampled[1] != sampled[2]
