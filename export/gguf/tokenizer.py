"""The tokenizer of a checkpoint, as GGUF metadata.

Read from tokenizer.json itself (AutoTokenizer may rebuild a custom vocabulary as something else),
tokenizer_config.json and chat_template.jinja. Only byte-level BPE, which the whole R1 family uses.

Token types are llama.cpp's: added tokens are *control* (never shown) when they are special or
look like `<|...|>`, else *user-defined*; ids up to the model's `vocab_size` that the tokenizer
lacks are *unused*, named [PADn].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from tightfit.calib.json_file import read_json
from tightfit.errors import CheckpointError
from tightfit.export.gguf.entry import Entry, flag, i32s, text, texts, u32
from tightfit.export.gguf.pretokenizer import pre_tokenizer_id
from tightfit.records import shown

_SPECIAL_KINDS = ("bos", "eos", "unk", "pad")
_GGUF_KIND = {"unk": "unknown", "pad": "padding"}
"""GGUF spells two of them out (`tokenizer.ggml.padding_token_id`)."""
_SPECIAL_LOOKS = (("<|", "|>"), ("<｜", "｜>"))
"""Marks of tokens that are meant as special even where the file does not say so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTokenizer:
    """A byte-level BPE vocabulary with what llama.cpp needs to use it."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    """`left right`, in order of priority."""
    pre_tokenizer: str
    special_ids: Mapping[str, int]
    """`bos`, `eos`, `unk`, `pad` where they exist."""
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    named_templates: Mapping[str, str]
    """Further templates (`tool_use`)."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All `tokenizer.*` keys."""
        templates = [
            text(f"tokenizer.chat_template.{name}", template)
            for name, template in sorted(self.named_templates.items())
        ]
        if templates:
            templates.insert(0, texts("tokenizer.chat_templates", sorted(self.named_templates)))
        if self.chat_template is not None:
            templates.append(text("tokenizer.chat_template", self.chat_template))
        return (
            text("tokenizer.ggml.model", "gpt2"),
            text("tokenizer.ggml.pre", self.pre_tokenizer),
            texts("tokenizer.ggml.tokens", self.tokens),
            i32s("tokenizer.ggml.token_type", self.types),
            texts("tokenizer.ggml.merges", self.merges),
            *(
                u32(f"tokenizer.ggml.{_GGUF_KIND.get(kind, kind)}_token_id", token_id)
                for kind, token_id in self.special_ids.items()
            ),
            flag("tokenizer.ggml.add_bos_token", self.add_bos),
            flag("tokenizer.ggml.add_eos_token", self.add_eos),
            *templates,
        )


def read_tokenizer(folder: Path, *, vocab_size: int) -> GgufTokenizer:
    """The tokenizer of a checkpoint folder, padded to the model's `vocab_size`.

    Raises `CheckpointError` for a SentencePiece tokenizer, an unknown pre-tokenizer, more tokens
    than the model has, or values that no tokenizer has.
    """
    path = folder / "tokenizer.json"
    definition = _read_definition(path)
    try:
        return _gguf_tokenizer(path, definition, vocab_size=vocab_size)
    # A value of the wrong type shows where it is used.
    except (TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer in {folder} has values that no tokenizer has: "
            f"{type(error).__name__}: {shown(str(error))}",
            hint="download tokenizer.json and tokenizer_config.json again",
        ) from error


def _gguf_tokenizer(path: Path, definition: Mapping[str, Any], *, vocab_size: int) -> GgufTokenizer:
    folder = path.parent
    config = read_json(folder / "tokenizer_config.json")
    model = definition["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    added = {token["content"]: token for token in definition.get("added_tokens", ())}
    vocabulary |= {content: token["id"] for content, token in added.items()}
    tokens, types = _token_table(vocabulary, added, vocab_size, origin=str(path))
    special_ids = _special_ids(folder, config, vocabulary, vocab_size)
    template, named_templates = _chat_templates(folder, config)
    return GgufTokenizer(
        tokens=tokens,
        types=types,
        merges=_merges(model, origin=str(path)),
        pre_tokenizer=pre_tokenizer_id(definition, vocabulary, origin=str(path)),
        special_ids=special_ids,
        add_bos=_adds("bos", config, definition, vocabulary, special_ids),
        add_eos=_adds("eos", config, definition, vocabulary, special_ids),
        chat_template=template,
        named_templates=named_templates,
    )


def _read_definition(path: Path) -> dict[str, Any]:
    definition = read_json(path)
    sentence_piece = CheckpointError(
        f"{path.parent}: the tokenizer is of the SentencePiece kind",
        allowed="byte-level BPE (R1, R1-Zero and all their distills use it)",
        hint="see `tightfit models` for the checkpoints that tightfit is made for",
    )
    if not definition:
        if (path.parent / "tokenizer.model").is_file():
            raise sentence_piece
        raise CheckpointError(
            f"{path.parent} holds no tokenizer.json",
            allowed="a checkpoint must carry its fast tokenizer (tokenizer.json)",
            hint="download the whole repository, not only its weights",
        )
    try:
        Tokenizer.from_str(json.dumps(definition))
    # The tokenizers package raises a plain Exception for whatever it does not take.
    except Exception as error:
        raise CheckpointError(
            f"{path} is no tokenizer: {shown(str(error))}", hint="download the file again"
        ) from error
    model = definition["model"]
    byte_level = '"ByteLevel"' in json.dumps(definition.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or not byte_level:
        raise sentence_piece
    return definition


def _token_table(
    vocabulary: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
    vocab_size: int,
    *,
    origin: str,
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    highest = max(vocabulary.values())
    if highest >= vocab_size:
        raise CheckpointError(
            f"{origin} has a token with id {highest} and the model knows {vocab_size} tokens",
            allowed="every token id must be below `vocab_size` of config.json",
            hint="tokenizer and weights are of different models: download them together",
        )
    names = {token_id: name for name, token_id in vocabulary.items()}
    tokens = tuple(names.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size))

    def kind(token_id: int, token: str) -> TokenType:
        if token_id not in names:
            return TokenType.UNUSED
        if token not in added:
            return TokenType.NORMAL
        looks_special = any(token.startswith(a) and token.endswith(b) for a, b in _SPECIAL_LOOKS)
        special = added[token].get("special") or looks_special
        return TokenType.CONTROL if special else TokenType.USER_DEFINED

    return tokens, tuple(kind(token_id, token) for token_id, token in enumerate(tokens))


def _merges(model: Mapping[str, Any], *, origin: str) -> tuple[str, ...]:
    """Merges in the old form (`"a b"`) from either form of the file."""
    merges: Sequence[str | Sequence[str]] = model.get("merges", ())
    if not merges:
        raise CheckpointError(
            f"{origin} has no merges",
            allowed="llama.cpp needs at least one merge of a byte-level BPE",
            hint="the file is damaged or of another kind: download it again",
        )
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    # Byte-level tokens hold no space (it is written Ġ), so one space separates the two.
    return tuple(" ".join(pair) for pair in pairs)


def _special_ids(
    folder: Path, config: Mapping[str, Any], vocabulary: Mapping[str, int], vocab_size: int
) -> dict[str, int]:
    """Special tokens by kind: named in tokenizer_config.json, else numbered in the model's."""
    numbered = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    found: dict[str, int] = {}
    for kind in _SPECIAL_KINDS:
        token = config.get(f"{kind}_token")
        content = token.get("content") if isinstance(token, Mapping) else token
        number = numbered.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0]
        if isinstance(content, str) and content in vocabulary:
            found[kind] = vocabulary[content]
        elif isinstance(number, int) and 0 <= number < vocab_size:  # -1 stands for none
            found[kind] = number
    return found


def _adds(
    kind: str,
    config: Mapping[str, Any],
    definition: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    special_ids: Mapping[str, int],
) -> bool:
    """Whether BOS (or EOS) is put around a text: as configured, else as the file's template."""
    if kind not in special_ids:
        return False
    configured = config.get(f"add_{kind}_token")
    if isinstance(configured, bool):
        return configured
    post = definition.get("post_processor") or {}
    for processor in post.get("processors", [post]):
        if processor.get("type") == "TemplateProcessing":
            piece = processor["single"][0 if kind == "bos" else -1]
            token = str(piece.get("SpecialToken", {}).get("id", ""))
            return vocabulary.get(token) == special_ids[kind]
    return False


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The default chat template and further ones by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), {}
    template = config.get("chat_template")
    named = {"default": template} if isinstance(template, str) else {}
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
    if not all(isinstance(each, str) for pair in named.items() for each in pair):
        raise TypeError("chat_template: a name or a template that is no text")
    return named.pop("default", None), named
