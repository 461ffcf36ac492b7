r"""Greedy answers and their strict grading.

What: answers are generated greedily in left-padded batches; an answer counts when `</think>` is
present and the last `\boxed{...}` after it equals the expected integer or fraction exactly.
Why strict: math-verify alone credits a box inside an unclosed `<think>`; here it only confirms
(`confirm_with_math_verify`) what the exact comparison found.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from tools.tiny_r1.problems import Problem
from tools.tiny_r1.tokenizer import EOS, prompt_text

MAX_NEW_TOKENS = 160  # the longest correct completion has under 130
BATCH_PROBLEMS = 125
Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution

_BOX = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_FRACTION = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}")


def parse_answer(text: str) -> Fraction | None:
    r"""The exact value of an integer or a `\frac{a}{b}`, else None."""
    if match := _FRACTION.fullmatch(text.strip()):
        denominator = int(match[2])
        return Fraction(int(match[1]), denominator) if denominator else None
    return Fraction(int(text)) if re.fullmatch(r"\s*-?\d+\s*", text) else None


def boxed_answer(completion: str) -> str | None:
    """The content of the last box after the last `</think>`, or None."""
    _, closed, visible = completion.rpartition("</think>")
    boxes = _BOX.findall(visible)
    return boxes[-1] if closed and boxes else None


def is_correct(completion: str, answer: str) -> bool:
    """Whether a completion earns the point under the strict rule."""
    boxed = boxed_answer(completion)
    value = parse_answer(boxed) if boxed is not None else None
    return value is not None and value == parse_answer(answer)


@torch.inference_mode()
def complete(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer, problems: Sequence[Problem]
) -> list[str]:
    """Greedy completions, in order, without the end token."""
    eos = tokenizer.token_to_id(EOS)
    was_training = model.training
    model.train(False)
    texts: list[str] = []
    for start in range(0, len(problems), BATCH_PROBLEMS):
        batch = problems[start : start + BATCH_PROBLEMS]
        prompts = [tokenizer.encode(prompt_text(p.text)).ids for p in batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[eos] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(  # type: ignore[misc]  # transformers types `self` as a mixin
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=eos,
            pad_token_id=eos,
        )
        # Only the end token is dropped by hand: skipping special tokens would keep `</think>`
        # merely because R1 does not mark it special.
        rows = [row[: row.index(eos)] if eos in row else row for row in out[:, width:].tolist()]
        texts += tokenizer.decode_batch(rows, skip_special_tokens=False)
    model.train(was_training)
    return texts


def count_correct(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer, problems: Sequence[Problem]
) -> int:
    """How many of `problems` the model answers correctly."""
    texts = complete(model, tokenizer, problems)
    return sum(is_correct(text, p.answer) for text, p in zip(texts, problems, strict=True))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    p = correct / total
    centre = p + Z_95**2 / (2 * total)
    half = Z_95 * math.sqrt(p * (1 - p) / total + Z_95**2 / (4 * total**2))
    scale = 1 + Z_95**2 / total
    return (centre - half) / scale, (centre + half) / scale


def confirm_with_math_verify(texts: Sequence[str], problems: Sequence[Problem]) -> int:
    """How many strict verdicts math-verify shares; it sees only the text after `</think>`."""
    from math_verify import parse, verify

    agreed = 0
    for text, problem in zip(texts, problems, strict=True):
        _, closed, visible = text.rpartition("</think>")
        credited = bool(closed) and verify(parse(f"${problem.answer}$"), parse(visible))
        agreed += credited == is_correct(text, problem.answer)
    return agreed
