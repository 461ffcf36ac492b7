"""What goes wrong between us and a server: each a clear error, or mended by another try."""

import email.utils
import socket
import threading
import time

import numpy as np
import pytest
from support.completion_server import Behaviour, Fault, bigram, serve
from support.tiny_r1 import TINY_R1

from tightfit.errors import LogprobsUnavailableError, RuntimeFailureError, UsageError
from tightfit.runtimes.endpoint import Endpoint, Retries
from tightfit.runtimes.endpoint.completion import request_seed
from tightfit.runtimes.endpoint.logprobs import from_echo, from_prompt_logprobs
from tightfit.runtimes.tokenizer import FolderTokenizer

TOKENIZER = FolderTokenizer(TINY_R1)
LOGITS = bigram(TOKENIZER, 512)
PROMPTS = [[506, 508, 20], [506, 508, 30], [506, 508, 41]]
FAST = Retries(attempts=4, first_wait_s=0.01)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("TIGHTFIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def connect(url, **options):
    options = {"context_tokens": 64, "retries": FAST} | options
    return Endpoint(url, tokenizer=TOKENIZER, **options)


@pytest.fixture
def server():
    with serve(LOGITS, TOKENIZER) as running:
        yield running


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "/v1"]
)
def test_what_is_no_url(url):
    with pytest.raises(UsageError, match="is not the URL of a server"):
        connect(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="TIGHTFIT_API_KEY") as caught:
        connect("http://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RuntimeFailureError, match=r"no connection to .*refused.*\n.*running"):
        connect(f"http://127.0.0.1:{port}")


def test_an_unknown_host():
    with pytest.raises(RuntimeFailureError, match=r"no connection to nowhere\.invalid"):
        connect("http://nowhere.invalid:8000")


def test_the_key_is_sent_and_asked_for(monkeypatch):
    with serve(LOGITS, TOKENIZER, Behaviour(key="secret")) as server:
        with pytest.raises(
            RuntimeFailureError, match=r"401.*\n.*TIGHTFIT_API_KEY.*\n.*none is set"
        ):
            connect(server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "other")
        with pytest.raises(RuntimeFailureError, match="was refused") as caught:
            connect(server.url)
        assert "other" not in str(caught.value)
        monkeypatch.setenv("TIGHTFIT_API_KEY", "secret")
        with connect(server.url) as endpoint:
            endpoint.generate(PROMPTS, max_tokens=2, seed=0)
        assert "secret" not in str(endpoint.system_info)
    assert server.keys == {None, "other", "secret"}


def test_a_wrong_path_says_that_v1_may_be_missing(server):
    with pytest.raises(RuntimeFailureError, match=r"404.*\n.*\n.*end in /v1"):
        connect(f"{server.url}/wrong")


def test_one_model_is_chosen_and_of_several_one_must_be_named():
    with serve(LOGITS, TOKENIZER, Behaviour(models=("a", "b"))) as server:
        with pytest.raises(UsageError, match="serves 2 models\none of: a, b"):
            connect(server.url)
        with pytest.raises(UsageError, match="serves no model 'c'\none of: a, b"):
            connect(server.url, model="c")
        with connect(server.url, model="b") as endpoint:
            assert endpoint.name == "b"
    assert {body["model"] for body in server.bodies} == {"b"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Welcome</html>", "answers with a web page: <html>Welcome</html>"),
        (b"[1]", r"answers with \[1\]"),
        (b'{"id": "x"}', "holds no choices: fields id"),
        (b'{"choices": []}', "holds no choices"),
        (b'{"error": {"message": "engine died"}}', "engine died"),
        (b'{"choices": [{"message": {"content": "hi"}}]}', "holds no text: fields message"),
        (b'{"choices": [{"text": "1", "finish_reason": "abort"}]}', "finish_reason 'abort'"),
        (b'{"choices": [{"text": "1"}]}', "finish_reason None"),
    ],
)
def test_answers_that_are_no_completions(server, body, message):
    with connect(server.url) as endpoint:
        server.faults.append(Fault(body=body))
        with pytest.raises(RuntimeFailureError, match=message) as caught:
            endpoint.generate(PROMPTS, max_tokens=3, seed=0, parallel=1)
    assert "0 of 3 completions were finished" in str(caught.value)


MENDED = [
    Fault(close=True),
    Fault(truncate=True),
    Fault(body=b'{"choices": [{"te'),
    Fault(status=503),
    Fault(status=500, body=b"<html>Bad Gateway</html>"),
    Fault(status=429, headers={"Retry-After": "0"}),
]


@pytest.mark.parametrize("fault", MENDED, ids=lambda fault: str(fault)[:60])
def test_another_try_mends(server, fault):
    with connect(server.url) as endpoint:
        expected = endpoint.generate(PROMPTS, max_tokens=3, seed=0)
        n_before = len(server.bodies)
        server.faults += [fault] * 3
        assert endpoint.generate(PROMPTS, max_tokens=3, seed=0, parallel=1) == expected
    assert len(server.bodies) == n_before + len(PROMPTS) + 3


def test_the_last_try_gives_up_and_says_what_was_kept(server):
    kept = []
    with connect(server.url) as endpoint:
        # The first prompt is completed; the second fails four times.
        server.faults += [Fault(), *[Fault(status=503, body=b"overloaded")] * 4]
        with pytest.raises(RuntimeFailureError, match="503 Service Unavailable: over") as caught:
            endpoint.generate(
                PROMPTS,
                max_tokens=3,
                seed=0,
                parallel=1,
                on_finished=lambda *each: kept.append(each),
            )
        assert "1 of 3 completions were finished before and handed on" in str(caught.value)
        assert [index for index, _ in kept] == [0]
        # It goes on with what is left.
        endpoint.generate(PROMPTS[1:], max_tokens=3, seed=0, streams=[1, 2])


@pytest.mark.parametrize("as_date", [False, True])
def test_a_busy_server_is_given_the_time_that_it_asks_for(server, as_date):
    with connect(server.url, retries=Retries(attempts=2, first_wait_s=30)) as endpoint:
        value = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.4"
        server.faults.append(Fault(status=429, headers={"Retry-After": value}))
        start = time.monotonic()
        endpoint.generate(PROMPTS[:1], max_tokens=3, seed=0)
    assert 0.4 <= time.monotonic() - start < 10


def test_pauses_grow_and_stay_within_their_bound():
    retries = Retries(first_wait_s=1.0, longest_wait_s=8.0)
    longest = [max(retries.wait_s(failures) for _ in range(400)) for failures in range(1, 7)]
    for seconds, bound in zip(longest, (1, 2, 4, 8, 8, 8), strict=True):
        assert 0.9 * bound < seconds <= bound


def test_what_the_server_refuses_is_not_tried_again(server):
    with connect(server.url) as endpoint:
        n_before = len(server.bodies)
        server.faults.append(Fault(status=400, body=b'{"message": "no"}'))
        with pytest.raises(RuntimeFailureError, match=r'400 Bad Request: \{"message": "no"\}'):
            endpoint.generate(PROMPTS[:1], max_tokens=3, seed=0)
    assert len(server.bodies) == n_before + 1


def test_a_late_answer_is_an_error_and_not_tried_again(server):
    with connect(server.url, timeout_s=0.3) as endpoint:
        n_before = len(server.bodies)
        server.faults.append(Fault(hang_s=5))
        with pytest.raises(RuntimeFailureError, match=r"did not answer within 0\.3 s"):
            endpoint.generate(PROMPTS[:1], max_tokens=3, seed=0)
    assert len(server.bodies) == n_before + 1


def test_a_failure_breaks_off_the_other_requests(server):
    with connect(server.url) as endpoint:
        server.faults += [Fault(hang_s=60), Fault(hang_s=60), Fault(status=400)]
        start = time.monotonic()
        with pytest.raises(RuntimeFailureError, match="400"):
            endpoint.generate(PROMPTS, max_tokens=3, seed=0, parallel=3)
        assert time.monotonic() - start < 10
        deadline = time.monotonic() + 10
        while server.gone < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_an_error_of_the_caller_breaks_off_too_and_stays_its_own(server):
    def fail(_index, _generation):
        raise RuntimeFailureError("the journal is full")

    with connect(server.url) as endpoint:
        server.faults += [Fault(), Fault(hang_s=60)]
        with pytest.raises(RuntimeFailureError) as caught:
            endpoint.generate(PROMPTS, max_tokens=3, seed=0, parallel=2, on_finished=fail)
    assert str(caught.value) == "the journal is full"


def test_a_redirect_is_not_followed_with_the_key(server, monkeypatch):
    monkeypatch.setenv("TIGHTFIT_API_KEY", "secret")
    with serve(LOGITS, TOKENIZER) as elsewhere, connect(server.url) as endpoint:
        for status in (302, 307):
            server.faults.append(Fault(status=status, headers={"Location": elsewhere.url}))
            with pytest.raises(RuntimeFailureError, match=f"points to {elsewhere.url}"):
                endpoint.generate(PROMPTS[:1], max_tokens=3, seed=0)
        assert elsewhere.keys == set()


def test_what_does_not_speak_http():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(RuntimeFailureError, match="does not speak HTTP"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}")


def test_https_to_a_server_without_it(server):
    with pytest.raises(RuntimeFailureError, match=r"no safe connection.*\n.*http://"):
        connect(server.url.replace("http:", "https:"))


def test_a_server_that_refuses_everything(server):
    server.faults += [Fault(status=422, body=b"chat only")] * 4
    with pytest.raises(RuntimeFailureError, match="refuses to complete a prompt: chat only"):
        connect(server.url)


@pytest.mark.parametrize("prompt", [[], [3] * 65])
def test_prompts_that_do_not_fit(server, prompt):
    with connect(server.url) as endpoint:
        n_before = len(server.bodies)
        with pytest.raises(RuntimeFailureError, match=f"a sequence of {len(prompt)} tokens"):
            endpoint.generate([PROMPTS[0], prompt], max_tokens=3, seed=0)
        assert len(server.bodies) == n_before


def test_logprobs_need_room_for_one_token(server):
    with connect(server.url) as endpoint:
        assert len(endpoint.token_logprobs([3] * 63, 1)) == 62
        with pytest.raises(RuntimeFailureError, match="1 to 63"):
            endpoint.token_logprobs([3] * 64, 1)


def test_a_closed_endpoint(server):
    with connect(server.url) as endpoint:
        pass
    with pytest.raises(RuntimeFailureError, match="was closed"):
        endpoint.generate(PROMPTS, max_tokens=1, seed=0)


def entry(logprob):
    return {"logprob": logprob}


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([None, {"5": entry(-1.0)}], "log-probabilities of 2 tokens, 3 were sent"),
        ("text", "of no tokens"),
        ([None, None, {"6": entry(-1.0)}], r"prompt_logprobs\[1\] is None"),
        ([None, {"9": entry(-1.0)}, {"6": entry(-1.0)}], "lacks token 5 of the prompt"),
        ([None, {"x": entry(-1.0)}, {"6": entry(-1.0)}], r"prompt_logprobs\[1\] is"),
        ([None, {"5": entry(3.0)}, {"6": entry(-1.0)}], "logprobs_E has 3.0"),
        ([None, {"5": entry(float("nan"))}, {"6": entry(-1.0)}], "logprobs_E has nan"),
        ([None, {"5": entry(-0.1), "7": entry(-0.1)}, {"6": entry(-1.0)}], "probability of 1.8"),
    ],
)
def test_damaged_prompt_logprobs(positions, message):
    with pytest.raises(RuntimeFailureError, match=message):
        from_prompt_logprobs(positions, [4, 5, 6], 1)


def test_a_rounding_above_zero_is_zero():
    found = from_prompt_logprobs([None, {"5": entry(1e-6), "7": entry(-20.0)}], [4, 5], 1)
    assert found.logprobs_E.tolist() == [0.0, -20.0]
    assert found.next_logprobs_T.tolist() == [0.0]


def echo(tokens, own, tops):
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": tops}


def test_damaged_echoes():
    tokens = TOKENIZER.encode("7 * 8")
    names = [TOKENIZER.decode([token]) for token in tokens]
    own = [None] + [-1.0] * (len(tokens) - 1)
    tops = [None] + [{name: -1.0} for name in names[1:]]
    assert len(from_echo(echo(names, own, tops), tokens, 1, TOKENIZER)) == len(tokens) - 1
    other = ["9", "9", *names[2:]]
    for damaged, message in (
        (echo(names[1:], own, tops), f"of {len(tokens) - 1} tokens, {len(tokens)} were sent"),
        (echo(other, own, tops), "token 1 is '9', not"),
        (echo(names, [None] * len(tokens), tops), "position 1 of logprobs"),
        (echo(names, own, [None] * len(tokens)), "position 1 of logprobs"),
        ({"content": []}, "logprobs has"),
    ):
        with pytest.raises(LogprobsUnavailableError, match=message):
            from_echo(damaged, tokens, 1, TOKENIZER)


def test_strings_that_are_no_token():
    """A part of a character is left out; as the most probable it leaves no answer, unless it is
    the token of the prompt."""
    part = next(token for token in range(512) if TOKENIZER.decode([token]) == "\ufffd")
    nine, eight = TOKENIZER.encode("9")[0], TOKENIZER.encode("8")[0]

    def read(following, top):
        name = TOKENIZER.decode([following])
        answer = echo(["9", name], [None, top[name]], [None, top])
        return from_echo(answer, [nine, following], 1, TOKENIZER)

    found = read(nine, {"9": -0.1, "\ufffd": -3.0, "8": -4.0, "8 * 8": -5.0})
    assert found.ids_E.tolist() == [nine, eight]
    assert found.logprobs_E == pytest.approx([-0.1, -4.0])
    found = read(part, {"\ufffd": -0.1, "8": -4.0})
    assert found.ids_E.tolist() == [part, eight]
    with pytest.raises(LogprobsUnavailableError, match="most probable token at position 1"):
        read(nine, {"\ufffd": -0.1, "9": -3.0})


def test_seeds_of_requests_are_spread_and_fit_31_bits():
    seeds = [request_seed(seed, stream) for seed in range(20) for stream in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert np.mean(seeds) == pytest.approx(2**30, rel=0.05)
