"""An engine as a runtime, its steps computed by onnxruntime: the logic around TensorRT's calls."""

import numpy as np
import onnxruntime
import pytest
import torch
from support.onnx_folders import onnx_folder
from support.tiny_r1 import TINY_R1

from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.errors import RuntimeFailureError
from tightfit.export.onnx.options import Dialect
from tightfit.runtimes.onnx import OnnxModel
from tightfit.runtimes.onnx.session import SessionOptions
from tightfit.runtimes.results import StopReason
from tightfit.runtimes.tensorrt.engine import Engine
from tightfit.runtimes.tensorrt.model import EngineModel

CONTEXT_TOKENS = 96


class SteppedByOnnxruntime(EngineModel):
    """Answers `_begin` and `_step` with the ONNX file that an engine would be built from."""

    _caches = ("past_key_values.0.key",)
    device_name = "stand-in"

    def _begin(self, n_rows, n_columns):
        assert n_rows <= self.max_batch
        assert n_columns <= CONTEXT_TOKENS
        self._past = {
            value.name: np.zeros((n_rows, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self._session.get_inputs()
            if value.name.startswith("past")
        }

    def _step(self, batch, start, end, profile):
        assert end - start <= self.chunk_tokens
        feed = {
            "input_ids": batch.input_ids_BT[:, start:end],
            "attention_mask": batch.attention_mask_BT[:, :end],
            "position_ids": batch.position_ids_BT[:, start:end],
        }
        names = [value.name for value in self._session.get_outputs()]
        made = dict(zip(names, self._session.run(None, feed | self._past), strict=True))
        self._past = {name: made[name.replace("past_key_values", "present")] for name in self._past}
        return torch.from_numpy(made["logits"])

    def _dtype(self, name):
        return torch.float32

    def _token_bytes(self, cache):
        return 512


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return onnx_folder(TINY_R1, tmp_path_factory.mktemp("engine"), dialect=Dialect.STANDARD)


@pytest.fixture
def model(path, monkeypatch):
    def load(self, path, *, package, device):
        self.vocab_size, self.context_tokens = 512, CONTEXT_TOKENS
        self.max_batch, self.chunk_tokens, self._buffers = 2, 8, {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)

    monkeypatch.setattr(Engine, "__init__", load)
    return SteppedByOnnxruntime(path, TINY_R1, context_tokens=4096, label="tensorrt_rtx 1.7")


@pytest.fixture(scope="module")
def reference(path):
    options = SessionOptions(threads=1)
    with OnnxModel(path, context_tokens=CONTEXT_TOKENS, options=options) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TINY_R1)
    questions = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "Solve $3x + 4 = 19$ for $x$.")
    return [prompt_ids(tokenizer, question) for question in questions]


def test_logits_come_in_chunks_that_the_engine_takes(model, reference):
    tokens = np.random.default_rng(0).integers(0, 500, 30).tolist()
    chunks = list(model.logits_chunks(tokens))
    assert [len(chunk) for chunk in chunks] == [8, 8, 8, 6]
    assert np.abs(np.concatenate(chunks) - reference.logits(tokens)).max() < 1e-3


def test_answers_are_those_of_onnxruntime(model, reference, prompts):
    seen = {}
    steps = []
    step = model._step
    model._step = lambda *arguments: steps.append(arguments) or step(*arguments)

    def on_finished(index, generation):
        assert index not in seen
        seen[index] = generation
        # Delivered at the step that chose the last token, not at the end of the batch.
        n_prefill = -(-max(len(prompt) for prompt in prompts[:2]) // model.chunk_tokens)
        if index < 2:
            assert len(steps) == n_prefill + len(generation.token_ids)

    made = model.generate(prompts, max_tokens=60, seed=0, on_finished=on_finished)
    assert made == reference.generate(prompts, max_tokens=60, seed=0)
    assert {each.stop for each in made} == {StopReason.END}
    assert [seen[index] for index in range(3)] == made
    assert len(made[0].token_ids) != len(made[1].token_ids)


def test_sampling_draws_the_same_streams(model, reference, prompts):
    options = {"max_tokens": 20, "temperature": 2.5, "top_p": 0.9, "seed": 5}
    whole = model.generate(prompts, **options)
    assert whole == reference.generate(prompts, **options)
    assert model.generate(prompts[1:], streams=[1, 2], **options) == whole[1:]
    assert model.generate(prompts[1:], **options) != whole[1:]


def test_a_full_context_ends_the_answer(model):
    made = model.generate([[5] * (CONTEXT_TOKENS - 6)], max_tokens=99, temperature=5.0, seed=0)[0]
    assert (made.stop, len(made.token_ids)) == (StopReason.CONTEXT, 7)
    with pytest.raises(RuntimeFailureError, match=f"1 to {CONTEXT_TOKENS}"):
        model.logits([1] * (CONTEXT_TOKENS + 1))


def test_system_info(model):
    assert model.system_info.label == "tensorrt_rtx 1.7 (stand-in)"
    assert model.system_info.context_tokens == CONTEXT_TOKENS
    assert model.system_info.kv_bytes == CONTEXT_TOKENS * 512
