"""Calibration files become the token sequences that the tokenizer itself gives."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tightfit.calib.calibration import CalibrationOptions, load_calibration
from tightfit.calib.locate import locate_model
from tightfit.calib.tokenizer import THINK_OPENING, load_tokenizer
from tightfit.errors import CalibrationError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(locate_model(None).path)


def written(path: Path, *records: object) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_trace_is_prompt_reasoning_and_end(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    record = {"problem": "What is 2 + 3?", "completion": "2 + 3 = 5\n</think>\n\\boxed{5}"}
    file = written(tmp_path / "a.jsonl", record)
    (sample,) = load_calibration(tokenizer, CalibrationOptions(source=str(file))).samples
    prompt = tokenizer.decode(sample.ids[: sample.completion_start])
    completion = tokenizer.decode(sample.ids[sample.completion_start :])
    assert prompt.endswith(THINK_OPENING)
    assert prompt.count(str(tokenizer.bos_token)) == 1
    assert record["problem"] in prompt
    assert completion == record["completion"] + str(tokenizer.eos_token)


def test_conversations_pass_through_the_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "1\u20282"}, {"role": "assistant", "content": "3"}]
    file = written(tmp_path / "a.jsonl", {"messages": messages})
    (sample,) = load_calibration(tokenizer, CalibrationOptions(source=str(file))).samples
    assert list(sample.ids) == tokenizer.apply_chat_template(messages)["input_ids"]


def test_running_text_is_cut_without_loss(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one and two is three. " * 40)
    options = CalibrationOptions(source=str(file), max_tokens=50)
    samples = load_calibration(tokenizer, options).samples
    assert {len(sample.ids) for sample in samples[:-1]} == {50}
    joined = [token for sample in samples for token in sample.ids]
    assert joined == tokenizer.encode(file.read_text(), add_special_tokens=False)


def test_the_choice_follows_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    def chosen(seed: int) -> str:
        options = CalibrationOptions(samples=5, max_tokens=40, seed=seed)
        calibration = load_calibration(tokenizer, options)
        assert len(calibration.samples) == 5
        assert all(len(sample.ids) <= 40 for sample in calibration.samples)
        return calibration.sha256

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"messages": [1]}', r"line 1: cannot use the fields \['messages'\]"),
        ("a.jsonl", b'{"text": "x"}\n{"messages": []}', "line 2: cannot use"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}', "cannot use"),
        ("a.jsonl", b"[1]", "cannot use the fields list"),
    ],
)
def test_unusable_files_are_refused(
    name: str, content: bytes, problem: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=problem) as caught:
        load_calibration(tokenizer, CalibrationOptions(source=str(tmp_path / name)))
    assert caught.value.hint
