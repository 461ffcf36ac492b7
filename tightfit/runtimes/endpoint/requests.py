"""The bodies of requests, and which of their fields a server takes.

OpenAI's interface lets a prompt be an array of token ids. vLLM, SGLang and llama.cpp take it; TGI
takes text only. The fields beyond OpenAI's make servers sample as the protocol says and nothing
else: without them vLLM applies the top-k and penalties of generation_config.json, and llama.cpp a
top-k of 40, a min-p of 0.05 and the temperature last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.endpoint.completion import TokenizerLike

EXTENSIONS: Final[Mapping[str, Any]] = {
    # R1's </think> is no special token in the tokenizers that DeepSeek ships, but others make it
    # one, and then it is dropped from the text.
    "skip_special_tokens": False,  # vLLM, SGLang
    "return_token_ids": True,  # vLLM, SGLang
    "top_k": -1,  # all tokens: vLLM, SGLang, llama.cpp
    "min_p": 0.0,  # the same
    "repetition_penalty": 1.0,  # vLLM, SGLang
}
LLAMACPP_EXTENSIONS: Final[Mapping[str, Any]] = {
    "samplers": ["temperature", "top_p"],
    # A prefix that is not computed anew is added up in another order: other rounding.
    "cache_prompt": False,
}
LLAMACPP: Final = "llamacpp"
"""What llama.cpp's server calls itself in `owned_by` of its model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What GET /models says of the model that is asked."""

    id: str
    server: str
    """`owned_by`: vllm, sglang, llamacpp, ...; empty where it is not said."""
    context_tokens: int | None
    """Longest sequence, where it is said."""
    vocab_size: int | None
    """Tokens of the vocabulary, where it is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How one server is asked."""

    model: str
    as_text: bool = False
    """Whether prompts go as text, since token ids are refused."""
    adds_first_token: bool = False
    """Whether the server itself puts a token in front of a text (BOS)."""
    extensions: Mapping[str, Any]

    def completion(
        self,
        prompt: Sequence[int],
        tokenizer: TokenizerLike,
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> dict[str, Any]:
        """The body of POST /completions."""
        return {
            "model": self.model,
            "prompt": self._prompt(prompt, tokenizer),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stream": False,
            **self.extensions,
        }

    def _prompt(self, prompt: Sequence[int], tokenizer: TokenizerLike) -> str | list[int]:
        if not self.as_text:
            return list(prompt)
        return tokenizer.decode(prompt[1:] if self.adds_first_token else prompt)


def dialects(card: ModelCard) -> list[Dialect]:
    """How to ask, in the order of trying: what is left out costs something."""
    extensions = dict(EXTENSIONS)
    if card.server == LLAMACPP:
        extensions |= LLAMACPP_EXTENSIONS
    return [
        Dialect(model=card.id, as_text=as_text, extensions=fields)
        for as_text in (False, True)
        for fields in (extensions, {})
    ]


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one choice of a completion's answer; raises `RuntimeFailureError`."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        said = answer.get("error", answer.get("detail", f"fields {', '.join(answer) or 'none'}"))
        raise RuntimeFailureError(
            f"the server's answer holds no choices: {said}",
            allowed='an answer of POST /completions, {"choices": [{"text": ...}]}',
            hint="is it an OpenAI-compatible server, and one for completions?",
        )
    choice: Mapping[str, Any] = choices[0]
    if not isinstance(choice.get("text"), str):
        raise RuntimeFailureError(
            f"the server's choice holds no text: fields {', '.join(choice) or 'none'}",
            allowed="the answer of POST /completions; that of /chat/completions is another",
        )
    return choice


def prompt_count(answer: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt as the server counted them, where it says."""
    usage = answer.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def generated_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """Token ids of a completion, where the server returns them."""
    ids = choice.get("token_ids")
    valid = isinstance(ids, list) and all(isinstance(each, int) for each in ids)
    return ids if valid else None
