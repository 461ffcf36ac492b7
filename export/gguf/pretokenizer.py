"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does.

llama.cpp has its pre-tokenizers built in and a GGUF names one (`tokenizer.ggml.pre`). Its
converter finds the name by hashing the token ids of a sample text, which only knows published
vocabularies. Here the tokenizer's own definition decides: the splitting steps and whether
merges are skipped for whole words are exactly what an id stands for, so a custom vocabulary with
a known split is recognized too. The tests hold llama.cpp's token ids against `tokenizers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tightfit.errors import CheckpointError

Json = Mapping[str, object]

R1_MARKER = "<｜begin▁of▁sentence｜>"
"""Token of every DeepSeek vocabulary; tells R1's Qwen distills from plain Qwen."""

_BYTE_LEVEL = "bytes"
_BYTE_LEVEL_GPT2 = "bytes, split as GPT-2"
_SINGLE_DIGITS = "single digits"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_DEEPSEEK_V3 = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_WORDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How text is cut before merging."""

    steps: tuple[str, ...]
    """Regular expressions that isolate their matches, in order, and the named steps above."""
    whole_words_first: bool = False
    """A word that is a token is not merged from its parts (`ignore_merges`)."""


KNOWN: Mapping[str, Split] = {
    "deepseek-v3": Split(steps=(*_DEEPSEEK_V3, _BYTE_LEVEL)),
    "deepseek-r1-qwen": Split(steps=(_QWEN2, _BYTE_LEVEL)),
    "qwen2": Split(steps=(_QWEN2, _BYTE_LEVEL)),
    "llama-bpe": Split(steps=(_LLAMA3, _BYTE_LEVEL), whole_words_first=True),
    "smollm": Split(steps=(_SINGLE_DIGITS, _BYTE_LEVEL_GPT2)),
    "gpt-2": Split(steps=(_BYTE_LEVEL_GPT2,)),
}
"""llama.cpp's ids. The two Qwen ids split alike; the vocabulary chooses the name."""


def pre_tokenizer_id(tokenizer: Json, vocabulary: Mapping[str, int], *, origin: str) -> str:
    """The id for a parsed tokenizer.json; raises `CheckpointError` when no known one splits so."""
    model = tokenizer["model"]
    assert isinstance(model, Mapping)
    split = Split(
        steps=_steps(tokenizer.get("pre_tokenizer")),
        whole_words_first=bool(model.get("ignore_merges")),
    )
    names = [name for name, known in KNOWN.items() if known == split]
    if not names:
        raise CheckpointError(
            f"{origin}: llama.cpp has no pre-tokenizer known to split text in these steps: "
            + "; ".join(split.steps),
            allowed="known ids: " + ", ".join(KNOWN),
            hint="give the checkpoint the tokenizer of its base model: see `tightfit models`",
        )
    if "qwen2" in names:
        return "deepseek-r1-qwen" if R1_MARKER in vocabulary else "qwen2"
    return names[0]


def _steps(node: object) -> tuple[str, ...]:
    """The steps of a `pre_tokenizer`; an unknown one is described by its JSON."""
    if not isinstance(node, Mapping):
        return ()
    kind = node.get("type")
    if kind == "Sequence":
        parts = node["pretokenizers"]
        assert isinstance(parts, list)
        return tuple(step for part in parts for step in _steps(part))
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return (_BYTE_LEVEL_GPT2 if node.get("use_regex", True) else _BYTE_LEVEL,)
    if kind == "Digits" and node.get("individual_digits"):
        return (_SINGLE_DIGITS,)
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            # Some files hold the characters themselves where others hold the escapes.
            return (str(pattern["Regex"]).replace("\r", r"\r").replace("\n", r"\n"),)
    return (str(dict(node)),)
