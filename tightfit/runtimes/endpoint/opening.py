"""First contact: which model is served, and how the server wants to be asked."""

from dataclasses import dataclass, replace
from typing import Any, Final

from tightfit.errors import RuntimeFailureError, UsageError
from tightfit.runtimes.endpoint.address import host_of, root_url
from tightfit.runtimes.endpoint.completion import TokenizerLike
from tightfit.runtimes.endpoint.flight import Flight
from tightfit.runtimes.endpoint.http import MALFORMED, ONCE, JsonClient, RefusedError
from tightfit.runtimes.endpoint.requests import (
    LLAMACPP,
    Dialect,
    ModelCard,
    dialects,
    first_choice,
    generated_ids,
    prompt_count,
)

PROBE_TEXT: Final = "1 + 1 ="
"""A prompt that any tokenizer has and any model completes."""
VERSION_ROUTES: Final = (("/version", "version"), ("/props", "build_info"))
"""Where servers say their version: vLLM and SGLang, llama.cpp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What first contact found."""

    card: ModelCard
    dialect: Dialect
    returns_ids: bool
    """Whether completions come with their token ids."""
    version: str
    """Empty where it is not said."""
    remarks: tuple[str, ...]
    """What is not as it should be."""


def open_server(client: JsonClient, model: str | None, tokenizer: TokenizerLike) -> Opened:
    """Ask for the models, then for one token; raises `RuntimeFailureError` and `UsageError`."""
    card = _find_model(client, model)
    prompt = tokenizer.encode(PROBE_TEXT)
    dialect, answer, refusals = _find_dialect(client, card, prompt, tokenizer)
    remarks = []
    if dialect.as_text:
        said = refusals[False, bool(dialect.extensions)].answer
        remarks.append(f"the server takes no token ids ({said}): prompts are sent as text")
    if not dialect.extensions:
        said = refusals[dialect.as_text, True].answer
        remarks.append(
            f"the server takes no fields beyond OpenAI's ({said}): its own top-k, min-p and "
            "penalties hold, and special tokens may be missing from answers"
        )
    counted = prompt_count(answer)
    if dialect.as_text and counted == len(prompt) + 1:
        dialect = replace(dialect, adds_first_token=True)
        remarks.append(
            "the server puts a token in front of a text: the first token of each prompt is left "
            "out, as it stands for it"
        )
    elif counted is not None and counted != len(prompt):
        remarks.append(
            f"the server counts {counted} tokens in a prompt of {len(prompt)}: it may read "
            "prompts otherwise than they are meant"
        )
    return Opened(
        card=card,
        dialect=dialect,
        returns_ids=generated_ids(first_choice(answer)) is not None,
        version=_version(client),
        remarks=tuple(remarks),
    )


def _find_model(client: JsonClient, model: str | None) -> ModelCard:
    try:
        answer = client.send(f"{client.base}/models", flight=Flight(), retries=ONCE)
    except RefusedError as error:
        if model is not None and error.status in (404, 405, 501):
            # A server without the route, where the model was named: nothing is lost.
            return ModelCard(id=model, server="", context_tokens=None, vocab_size=None)
        raise
    listed = answer.get("data")
    cards = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    by_id = {each["id"]: each for each in cards if isinstance(each.get("id"), str)}
    names = ", ".join(by_id) or "none"
    if model is None and len(by_id) != 1:
        raise UsageError(
            f"{host_of(client.base)} serves {len(by_id)} models",
            allowed=f"one of: {names}",
            hint="name the model",
        )
    if model is not None and model not in by_id:
        raise UsageError(
            f"{host_of(client.base)} serves no model {model!r}",
            allowed=f"one of: {names}",
            hint="the name is what the server calls it, which may be a path",
        )
    chosen = by_id[model if model is not None else next(iter(by_id))]
    owner = chosen.get("owned_by")
    return ModelCard(
        id=chosen["id"],
        server=owner if isinstance(owner, str) else "",
        context_tokens=_count(chosen, "max_model_len", "n_ctx"),
        vocab_size=_count(chosen, "vocab_size", "n_vocab"),
    )


def _count(card: dict[str, Any], name: str, llamacpp_name: str) -> int | None:
    """A number of a model's card; llama.cpp has it in `meta`."""
    meta = card.get("meta")
    said = card.get(name, meta.get(llamacpp_name) if isinstance(meta, dict) else None)
    return said if isinstance(said, int) and said > 0 else None


def _find_dialect(
    client: JsonClient, card: ModelCard, prompt: list[int], tokenizer: TokenizerLike
) -> tuple[Dialect, dict[str, Any], dict[tuple[bool, bool], RefusedError]]:
    """The first that the server takes, its answer, and its refusals by (text, extensions)."""
    refusals: dict[tuple[bool, bool], RefusedError] = {}
    for dialect in dialects(card):
        body = dialect.completion(
            prompt, tokenizer, max_tokens=1, temperature=0.0, top_p=1.0, seed=0
        )
        try:
            answer = client.send(f"{client.base}/completions", body, flight=Flight(), retries=ONCE)
        except RefusedError as error:
            if error.status not in MALFORMED:
                raise
            refusals[dialect.as_text, bool(dialect.extensions)] = last = error
            continue
        first_choice(answer)
        return dialect, answer, refusals
    raise RuntimeFailureError(
        f"{host_of(client.base)} refuses to complete a prompt: {last.answer}",
        allowed="POST /completions with a prompt as token ids or as text",
        hint="a server for chat only cannot be measured: the answer must be forced to begin with "
        "<think>",
    ) from last


def _version(client: JsonClient) -> str:
    """What the server says of itself, or nothing: it is for the report only."""
    for route, field in VERSION_ROUTES:
        try:
            answer = client.send(root_url(client.base) + route, flight=Flight(), retries=ONCE)
        except RuntimeFailureError:
            continue
        if isinstance(answer.get(field), str):
            return str(answer[field])
    return ""


def server_name(opened: Opened) -> str:
    """The server and its version in a few words."""
    names = {LLAMACPP: "llama.cpp server", "vllm": "vLLM", "sglang": "SGLang"}
    name = names.get(opened.card.server, opened.card.server or "OpenAI-compatible server")
    return f"{name} {opened.version}".strip()
