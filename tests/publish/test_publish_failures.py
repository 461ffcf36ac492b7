"""What the client's errors are told as, and that no token is in what is told.

The errors are the client's own, raised by it from answers that the Hub gives.
"""

from collections.abc import Mapping

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import hf_raise_for_status

from tightfit.errors import PublishError
from tightfit.publish.failures import explain, is_definite, leaks
from tightfit.publish.secrets import mask

TOKEN = "hf_" + "Zq7" * 12
STATE = "no file in someone/r1 was changed"


def client_error(
    status: int, *, said: str = "", headers: Mapping[str, str] | None = None, code: str = ""
) -> errors.HfHubHTTPError:
    """As the client raises it, with whichever HTTP library it has."""
    response_class = errors.Response  # type: ignore[attr-defined]
    request_class = __import__(response_class.__module__.split(".")[0]).Request
    response = response_class(
        status,
        json={"error": said},
        headers={**(headers or {}), **({"X-Error-Code": code} if code else {})},
        request=request_class("POST", "https://huggingface.co/api/models/someone/r1/commit/main"),
    )
    with pytest.raises(errors.HfHubHTTPError) as raised:
        hf_raise_for_status(response)
    return raised.value


def told(error: BaseException) -> PublishError:
    return explain(
        error, doing="committing to main of someone/r1", state=STATE, owner="someone", token=TOKEN
    )


@pytest.mark.parametrize(
    ("status", "what", "hint"),
    [
        (401, "does not know who you are", "hf auth login"),
        (403, "the token may not do this", "hf auth login"),
        (404, "there is no such thing, or the token cannot see it", "hf auth whoami"),
        (409, "changed by somebody else", "looks at the new state first"),
        (412, "changed by somebody else", "looks at the new state first"),
        (413, "too large for the Hub", "--split-max-size"),
        (429, "too many requests", "wait some minutes, then run the same command again"),
        (422, "the Hub refuses this", "mend what it says"),
        (500, "the Hub itself failed", "wait a little, and run the same command again"),
        (503, "the Hub itself failed", "wait a little, and run the same command again"),
    ],
)
def test_each_status_says_what_happened_what_holds_and_what_to_do(
    status: int, what: str, hint: str
) -> None:
    error = client_error(status, said="no, because")
    failure = told(error)
    assert failure.problem.startswith("committing to main of someone/r1: ")
    assert what in failure.problem
    assert f"(HTTP {status}: no, because)" in failure.problem
    assert failure.allowed.startswith("No file in someone/r1 was changed")
    assert hint in failure.hint
    assert is_definite(error) == (status < 500)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "120"}, "wait 120 s, as the Hub asks"),
        (
            {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"},
            "wait until Wed, 21 Oct 2026 07:28:00 GMT, as the Hub asks",
        ),
        ({"RateLimit": '"api";r=0;t=55'}, "wait 55 s, as the Hub asks"),
    ],
)
def test_how_long_to_wait_is_told(headers: Mapping[str, str], wait: str) -> None:
    assert wait in told(client_error(429, headers=headers)).hint


def test_a_repository_that_is_not_seen_because_of_the_token_is_told_so() -> None:
    failure = told(client_error(401, code="RepoNotFound"))
    assert "does not know who you are" in failure.problem


def test_failures_inside_threads_of_the_client_are_found() -> None:
    wrapped = RuntimeError("Error while uploading 'model.gguf' to the Hub.")
    wrapped.__cause__ = client_error(413, said="5 TB is too much")
    assert "too large for the Hub (HTTP 413: 5 TB is too much)" in told(wrapped).problem


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("after 10 s")])
def test_a_broken_connection_is_told(error: Exception) -> None:
    failure = told(error)
    assert f"the connection broke or timed out ({type(error).__name__}: {error})" in failure.problem
    assert failure.hint.startswith("check the connection, and run the same command again")
    assert not is_definite(error)


def test_offline_is_told() -> None:
    failure = told(errors.OfflineModeIsEnabled("offline mode is enabled"))
    assert "HF_HUB_OFFLINE is set" in failure.problem
    assert "unset it" in failure.hint


@pytest.mark.parametrize(
    "text",
    [
        f"Illegal header value b'Bearer {TOKEN}'",
        f"authorization: bearer {TOKEN},",
        f"https://user:{TOKEN}@huggingface.co/x",
        f"https://s3.example/x?X-Amz-Signature={TOKEN}&X-Amz-Date=1",
        f"the token {TOKEN} has no write scope",
    ],
)
def test_tokens_are_never_told(text: str) -> None:
    for failure in (
        told(client_error(403, said=text)),
        told(ValueError(text)),
        told(ConnectionError(text)),
    ):
        assert TOKEN not in str(failure)
        assert "***" in str(failure)
    assert leaks(ValueError(text), TOKEN)
    # Others' tokens too, when they look like one.
    assert TOKEN not in mask(text, None)


def test_a_token_of_any_form_is_masked_by_its_value() -> None:
    assert mask("odd-token_1 is wrong", "odd-token_1") == "*** is wrong"


def test_what_is_no_token_is_left_alone() -> None:
    text = "see https://huggingface.co/docs/hub/storage-limits, hf_hub_download and hf_xet"
    assert mask(text, None) == text
    assert not leaks(ValueError(text), TOKEN)


def test_a_page_of_html_is_cut() -> None:
    assert len(told(client_error(502, said="<p>" * 9999)).problem) < 500
