"""Running an engine: its buffers and profiles on a stand-in, its refusals on this machine."""

import sys

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.tensorrt_models import decoder_onnx
from support.tensorrt_stand_in import stand_in
from transformers import AutoModelForCausalLM

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.errors import MissingPackageError, RuntimeFailureError
from tightfit.export.tensorrt.golden import Golden, lay_out, relative_difference
from tightfit.runtimes.tensorrt.engine import Engine
from tightfit.runtimes.tensorrt.package import Package
from tightfit.runtimes.tensorrt.profile import DECODE, PREFILL, Profile

PROFILE = Profile(context_tokens=48, max_batch=3, prompt_tokens=8)
FLOAT16_LIMIT = 5e-3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", "qwen2")


@pytest.fixture
def engine(checkpoint, tmp_path, monkeypatch):
    onnx_file = decoder_onnx(tmp_path, open_checkpoint(checkpoint), "float16")
    path = tmp_path / "model.engine"
    path.write_text(str(onnx_file))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in(PROFILE))
    return Engine(path, device="cpu")


def batch_of(lengths, decode_tokens):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 512, n + decode_tokens).tolist() for n in lengths]
    return sequences, lay_out(sequences, decode_tokens=decode_tokens)


def test_a_padded_batch_agrees_with_transformers(engine, checkpoint):
    sequences, batch = batch_of((19, 11, 1), 16)
    run = engine.run(batch)
    assert run.logits_BTV.shape == (3, 35, 512)
    assert run.logits_BTV.dtype == np.float32
    assert run.tokens_per_s > 0
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected_BTV = np.zeros_like(run.logits_BTV)
    real_BT = batch.attention_mask_BT.astype(bool)
    for row, sequence in enumerate(sequences):
        with torch.inference_mode():
            logits = model(torch.tensor([sequence]), use_cache=False).logits[0]
        expected_BTV[row][real_BT[row]] = logits.numpy()
    golden = Golden(batch=batch, logits_BTV=expected_BTV)
    assert relative_difference(golden, run.logits_BTV) < FLOAT16_LIMIT


def test_prompts_are_read_in_chunks_and_answers_token_by_token(engine):
    _, batch = batch_of((19,), 3)
    engine.run(batch)
    assert engine._context.profiles_used == [PREFILL] * 3 + [DECODE] * 3


def test_a_second_batch_begins_with_an_empty_cache(engine):
    _, batch = batch_of((5, 9), 4)
    first = engine.run(batch).logits_BTV
    engine.run(batch_of((12,), 2)[1])
    again = engine.run(batch).logits_BTV
    real_BT = batch.attention_mask_BT.astype(bool)
    assert np.array_equal(first[real_BT], again[real_BT])


def test_what_the_engine_was_built_for(engine):
    assert (engine.max_batch, engine.context_tokens, engine.chunk_tokens) == (3, 48, 8)
    assert engine.vocab_size == 512
    for lengths, decode_tokens in (((40,), 9), ((1, 1, 1, 1), 1)):
        with pytest.raises(RuntimeFailureError, match="a batch of") as caught:
            engine.run(batch_of(lengths, decode_tokens)[1])
        assert "built for 3 of 48" in caught.value.allowed
    assert engine.run(batch_of((40,), 8)[1]).logits_BTV.shape == (1, 48, 512)


def test_a_file_that_does_not_load_carries_tensorrts_words(engine, tmp_path):
    path = tmp_path / "other.engine"
    path.write_bytes(b"not an engine")
    with pytest.raises(RuntimeFailureError, match="Serialization assertion failed") as caught:
        Engine(path, device="cpu")
    assert "build-engine" in caught.value.hint


@pytest.mark.parametrize("answer", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_step_that_fails_is_our_error(engine, monkeypatch, answer):
    monkeypatch.setattr(engine._context, answer, lambda *arguments: False)
    with pytest.raises(RuntimeFailureError, match="TensorRT failed at"):
        engine.run(batch_of((5,), 1)[1])


def test_without_a_gpu_the_refusal_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in(PROFILE))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeFailureError, match="no NVIDIA GPU or no driver") as caught:
        Engine(tmp_path / "model.engine")
    assert "machine that has the card" in caught.value.hint


def test_without_the_package_the_refusal_names_it(tmp_path):
    with pytest.raises(MissingPackageError, match="package tensorrt,"):
        Engine(tmp_path / "model.engine", package=Package.CLASSIC)
