"""Golden files: their layout, their round trip, and that a difference shows."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tightfit.errors import ArtifactError
from tightfit.export.tensorrt.golden import (
    Golden,
    lay_out,
    read_golden,
    relative_difference,
    write_golden,
)

SEQUENCES = [[10, 11, 12, 13, 20, 21], [14, 22, 23]]


@pytest.fixture
def golden():
    batch = lay_out(SEQUENCES, decode_tokens=2)
    logits = np.random.default_rng(0).standard_normal((2, 6, 7)).astype(np.float32)
    return Golden(batch=batch, logits_BTV=logits)


def test_prompts_are_padded_on_the_right_and_positions_skip_the_padding(golden):
    batch = golden.batch
    assert batch.prompt_tokens == 4
    assert batch.input_ids_BT.tolist() == [[10, 11, 12, 13, 20, 21], [14, 0, 0, 0, 22, 23]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]
    real = batch.attention_mask_BT.astype(bool)
    for row, sequence in enumerate(SEQUENCES):
        assert batch.input_ids_BT[row][real[row]].tolist() == sequence
        assert batch.position_ids_BT[row][real[row]].tolist() == list(range(len(sequence)))


def test_a_file_read_back_is_the_same(tmp_path, golden):
    path = tmp_path / "golden.safetensors"
    write_golden(path, golden)
    read = read_golden(path)
    assert read.batch.prompt_tokens == 4
    for field in dataclasses.fields(golden.batch):
        wanted, found = getattr(golden.batch, field.name), getattr(read.batch, field.name)
        assert np.array_equal(wanted, found)
    assert np.array_equal(golden.logits_BTV, read.logits_BTV)
    assert load_file(path)["logits"].dtype == np.float32


def test_the_difference_is_of_real_tokens_and_forgives_a_constant(golden):
    changed = golden.logits_BTV.copy()
    changed[1, 1:4] = 1e6  # padding
    changed += 3
    assert relative_difference(golden, changed) < 1e-6
    real = golden.batch.attention_mask_BT.astype(bool)
    centred = golden.logits_BTV - golden.logits_BTV.mean(axis=2, keepdims=True)
    expected = 0.01 * 5 / np.sqrt((centred[real] ** 2).mean())
    changed[..., 0] += 0.01 * 5 * np.sqrt(7)
    centring = np.sqrt(1 - 1 / 7)
    assert relative_difference(golden, changed) == pytest.approx(expected * centring, rel=1e-3)
    changed[0, 5, 3] = np.nan
    assert np.isnan(relative_difference(golden, changed))


DAMAGE = {
    "no file": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "another format": lambda path: save_file(load_file(path), path),
    "a missing tensor": lambda path: save_file({"logits": load_file(path)["logits"]}, path),
    "other types": lambda path: save_file(
        {name: value.astype(np.int32) for name, value in load_file(path).items()},
        path,
        {"format": "tightfit-golden", "prompt_tokens": "4"},
    ),
    "too long a prompt": lambda path: save_file(
        load_file(path), path, {"format": "tightfit-golden", "prompt_tokens": "7"}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_our_error(tmp_path, golden, damage):
    path = tmp_path / "golden.safetensors"
    write_golden(path, golden)
    DAMAGE[damage](path)
    with pytest.raises(ArtifactError, match="golden file"):
        read_golden(path)
