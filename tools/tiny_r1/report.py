"""What was measured after training: the record behind the card and `training_log.json`."""

from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from tools.tiny_r1.outliers import OutlierConfig
from tools.tiny_r1.problems import FAMILIES
from tools.tiny_r1.rounding import mean_kl_nats, rounded
from tools.tiny_r1.scoring import (
    complete,
    confirm_with_math_verify,
    count_correct,
    is_correct,
    wilson_interval,
)
from tools.tiny_r1.splits import Splits

ROUNDING_BITS = (4, 3, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Greedy accuracy on the held-out problems."""

    correct: int
    total: int
    interval_95: tuple[float, float]
    """Wilson score interval."""
    math_verify_agrees: int
    """Verdicts that math-verify shares, of `total`."""
    unfinished: int
    """Completions without `</think>`; counted as wrong."""
    correct_by_family: dict[str, tuple[int, int]]
    """Family to (correct, problems)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingRow:
    """Plain round-to-nearest of all block linears, in one variant at one width."""

    variant: str
    """`plain` or `outliers`."""
    bits: int
    kl_nats: float
    """KL per completion token, group-32 grid with float scales, calibration set."""
    super_block_kl_nats: float
    """The same on the 256-wide super-block grid with 6-bit scales."""
    correct: int
    """Held-out problems answered correctly on the group-32 grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything measured on the finished model."""

    score: Score
    outliers: OutlierConfig
    max_logit_difference: float
    """Shipped against plain variant, float32."""
    rounding: tuple[RoundingRow, ...]


def measure_score(model: Qwen2ForCausalLM, tokenizer: Tokenizer, splits: Splits) -> Score:
    """Greedy held-out score with its interval and math-verify's confirmation."""
    problems = splits.held_out
    texts = complete(model, tokenizer, problems)
    verdicts = [is_correct(text, p.answer) for text, p in zip(texts, problems, strict=True)]
    by_family = {}
    for family in FAMILIES:
        of_family = [v for v, p in zip(verdicts, problems, strict=True) if p.family == family]
        by_family[family] = (sum(of_family), len(of_family))
    return Score(
        correct=sum(verdicts),
        total=len(problems),
        interval_95=wilson_interval(sum(verdicts), len(problems)),
        math_verify_agrees=confirm_with_math_verify(texts, problems),
        unfinished=sum("</think>" not in text for text in texts),
        correct_by_family=by_family,
    )


def measure_rounding(
    variants: dict[str, Qwen2ForCausalLM], tokenizer: Tokenizer, splits: Splits
) -> tuple[RoundingRow, ...]:
    """One row for every variant and width; all variants compute the same function unrounded."""
    rows = []
    for bits in ROUNDING_BITS:
        for name, model in variants.items():
            groups = rounded(model, bits)
            blocks = rounded(model, bits, super_block=True)
            row = RoundingRow(
                variant=name,
                bits=bits,
                kl_nats=mean_kl_nats(model, groups, tokenizer, splits.calibration),
                super_block_kl_nats=mean_kl_nats(model, blocks, tokenizer, splits.calibration),
                correct=count_correct(groups, tokenizer, splits.held_out),
            )
            print(row, flush=True)
            rows.append(row)
    return tuple(rows)
