"""The tokenizer: byte-level BPE of exactly 512 tokens in the shape of R1-Distill-Qwen's.

What: 256 bytes, merges learnt from the problems, six added tokens at the end. Normalizer,
pre-tokenizer, post-processor and decoder are those of DeepSeek-R1-Distill-Qwen's
`tokenizer.json` (llama.cpp calls the pre-tokenizer `deepseek-r1-qwen`); as there, only the two
sentence tokens are `special`, the role and thinking tags are plain added tokens.
Why 512 exactly: the embedding has 512 rows, and transformers 5 adds a 513th token when
`unk_token` is unset or a class is guessed from `model_type`; both are set in the files.
Deviation: the post-processor adds no BOS (nor does the original's); the chat template writes it.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tools.tiny_r1.problems import stream

VOCAB_SIZE = 512
MAX_LENGTH_TOKENS = 1024  # the model's max_position_embeddings
CORPUS_PROBLEMS = 6000  # enough for every phrasing of every family, under a second to draw

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
SENTENCE_TOKENS = (BOS, EOS)
TAG_TOKENS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")

PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
"""R1's template less its tool calls."""


def train_tokenizer(seed: int, excluded: frozenset[str]) -> Tokenizer:
    """The tokenizer learnt from a seeded sample of training problems."""
    problems = islice(stream(f"{seed}:tokenizer", excluded), CORPUS_PROBLEMS)
    return tokenizer_from_texts(f"{p.text}\n{p.completion}" for p in problems)


def tokenizer_from_texts(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE with `VOCAB_SIZE` tokens; raises when the texts hold too few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(**byte_level),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SENTENCE_TOKENS) - len(TAG_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SENTENCE_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAG_TOKENS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(
            f"the texts give {tokenizer.get_vocab_size()} tokens where {VOCAB_SIZE} are needed; "
            "add more varied texts"
        )
    return tokenizer


def prompt_text(problem_text: str) -> str:
    """The chat template's rendering of one user turn with its generation prompt."""
    return f"{BOS}<｜User｜>{problem_text}<｜Assistant｜><think>\n"


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """`tokenizer.json` and the `tokenizer_config.json` that makes transformers leave it alone."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": EOS,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
