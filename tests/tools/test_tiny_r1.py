"""The embedded model's generators, tokenizer, outliers and shipped files."""

import json
import random
import re
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

REPOSITORY = Path(__file__).parents[2]
sys.path.append(str(REPOSITORY))  # `tools` is no installed package

from tools.tiny_r1.outliers import (  # noqa: E402
    OutlierConfig,
    max_logit_difference,
    outlier_sites,
    with_outliers,
)
from tools.tiny_r1.problems import FAMILIES, Problem, draw, stream  # noqa: E402
from tools.tiny_r1.rounding import rounded  # noqa: E402
from tools.tiny_r1.scoring import (  # noqa: E402
    boxed_answer,
    is_correct,
    parse_answer,
    wilson_interval,
)
from tools.tiny_r1.splits import make_splits  # noqa: E402
from tools.tiny_r1.tokenizer import VOCAB_SIZE, prompt_text, train_tokenizer  # noqa: E402

FOLDER = REPOSITORY / "calib" / "embedded" / "tiny-r1"
LINE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def solve(problem: Problem) -> Fraction:
    """The answer from the problem's text alone, by other means than the generator's."""
    text = problem.text
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    match problem.family:
        case "sum":
            return Fraction(sum(numbers))
        case "difference":
            return Fraction(abs(numbers[0] - numbers[1]))
        case "product":
            return Fraction(numbers[0] * numbers[1])
        case "remainder":
            return Fraction(numbers[0] % numbers[1])
        case "linear":
            a, b, c = numbers
            return next(Fraction(x) for x in range(1000) if a * x + b == c)
        case "balance":
            a, b, c, d = numbers
            return next(Fraction(x) for x in range(1000) if a * x + b == c * x + d)
        case "system":
            total, gap = numbers
            x, y = next(
                (x, y) for x in range(200) for y in range(200) if (x + y, x - y) == (total, gap)
            )
            return Fraction(x if text.endswith("$x$?") else y)
        case "fractions":
            a, m, b, n = numbers
            return Fraction(a, m) + Fraction(b, n)
        case "evaluate":
            (x,) = re.findall(r"\$x = (\d+)\$", text)
            (polynomial,) = re.findall(r"\$(x\^2[^$]*)\$", text)
            expression = re.sub(r"(\d)x", r"\1*x", polynomial).replace("^", "**")
            return Fraction(eval(expression, {"x": int(x)}))
        case "sequence":
            n, first, second, _ = numbers
            return Fraction(list(islice(range(first, 10**4, second - first), n))[-1])
        case "purchase":
            count, price, extra = numbers
            return Fraction(count * price + extra)
        case "rectangle":
            length, width = numbers
            return Fraction(length * width if "area" in text else 2 * (length + width))
    raise AssertionError(problem.family)


@pytest.mark.parametrize("family", FAMILIES)
def test_generators_are_correct(family: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        problem = draw(rng, family)
        assert parse_answer(problem.answer) == solve(problem), problem
        for a, operator, b, result in LINE.findall("\n".join(problem.steps)):
            assert Fraction(result) == eval(f"Fraction({a}) {operator} Fraction({b})"), problem
        assert 1 <= problem.level <= 5
        assert is_correct(problem.completion, problem.answer)


def test_fractions_are_in_lowest_terms() -> None:
    rng = random.Random(2)
    for _ in range(200):
        answer = draw(rng, "fractions").answer
        value = parse_answer(answer)
        assert value is not None
        assert answer == f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def test_seeds_reproduce_and_splits_are_disjoint() -> None:
    splits = make_splits(3)
    assert splits == make_splits(3)
    assert splits != make_splits(4)
    total = len(splits.held_out) + len(splits.validation) + len(splits.calibration)
    assert len(splits.texts) == total
    trained = {p.text for p in islice(stream("3:train:0", splits.texts), 5000)}
    assert not trained & splits.texts


def test_grading_is_strict() -> None:
    assert is_correct("1 + 1 = 2\n</think>\nThe answer is $\\boxed{2}$.", "2")
    assert is_correct("</think>\\boxed{1} \\boxed{\\frac{2}{4}}", "\\frac{1}{2}")
    assert not is_correct("The answer is $\\boxed{2}$.", "2")
    assert not is_correct("\\boxed{2}</think>The answer is 2.", "2")
    assert boxed_answer("</think>\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    low, high = wilson_interval(435, 500)
    assert low == pytest.approx(0.8377, abs=1e-4)
    assert high == pytest.approx(0.8967, abs=1e-4)


def test_tokenizer_rebuilds_as_shipped() -> None:
    log = json.loads((FOLDER / "training_log.json").read_text(encoding="utf-8"))
    seed = log["config"]["seed"]
    rebuilt = train_tokenizer(seed, make_splits(seed).texts)
    shipped = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert json.loads(rebuilt.to_str()) == json.loads(shipped.to_str())


SHIPPED_TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_tokenizer_round_trips_utf8(text: str) -> None:
    tokenizer = SHIPPED_TOKENIZER
    normalizer = tokenizer.normalizer
    assert normalizer is not None
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == normalizer.normalize_str(text)


def test_transformers_reads_the_same_tokenizer() -> None:
    raw = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text = prompt_text("Compute $1 + 2$.") + "é 漢\n\n  x</think>"
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        tokenizer = loader.from_pretrained(FOLDER)
        assert len(tokenizer) == VOCAB_SIZE
        assert tokenizer(text)["input_ids"] == raw.encode(text).ids


def test_chat_template_is_r1s() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    question = [{"role": "user", "content": "Q"}]
    assert tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    ) == prompt_text("Q")
    history = [
        {"role": "system", "content": "S"},
        *question,
        {"role": "assistant", "content": "<think>\nr\n</think>\nA"},
    ]
    assert tokenizer.apply_chat_template(history, tokenize=False) == (
        "<｜begin▁of▁sentence｜>S<｜User｜>Q<｜Assistant｜>\nA<｜end▁of▁sentence｜>"
    )


def random_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Qwen2ForCausalLM(config).eval()


def test_outliers_keep_the_function_and_hurt_rounding() -> None:
    model = random_model()
    changed = with_outliers(model, OutlierConfig())
    ids = [torch.arange(40)[None]]
    assert max_logit_difference(model, changed, ids) == 0.0
    norm, changed_norm = (outlier_sites(m)[0].producers[0] for m in (model, changed))
    assert int((norm != changed_norm).sum()) == OutlierConfig().channels_per_site
    errors = [max_logit_difference(model, rounded(m, 4), ids) for m in (model, changed)]
    assert errors[1] > 2 * errors[0]


def test_outlier_factors_are_powers_of_two() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        OutlierConfig(factors=(4, 6))


def test_shipped_files() -> None:
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size < 10 * 2**20
    with safe_open(weights, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    held_out, calibration = (
        [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
        for name in ("heldout.jsonl", "calibration.jsonl")
    )
    assert len(held_out) == 500
    assert len(calibration) >= 256
    assert not {row["problem"] for row in held_out} & {row["problem"] for row in calibration}
    assert set(held_out[0]) == {"problem", "solution", "answer", "subject", "level", "unique_id"}
    assert "/work" not in (FOLDER / "training_log.json").read_text(encoding="utf-8")


def test_shipped_model_answers() -> None:
    """One easy problem, so that a broken file shows without the minutes of a full score."""
    from tools.tiny_r1.scoring import complete

    model = Qwen2ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    problems = [draw(random.Random(seed), "fractions") for seed in range(8)]
    texts = complete(model, tokenizer, problems)
    assert sum(is_correct(t, p.answer) for t, p in zip(texts, problems, strict=True)) >= 6
