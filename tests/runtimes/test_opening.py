"""Which runtime a path is opened in."""

import pytest
from support.tiny_r1 import TINY_R1

from tightfit.errors import ArtifactError, RuntimeFailureError
from tightfit.runtimes import opening
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.transformers import TransformersModel


def test_a_checkpoint_folder_runs_in_transformers():
    assert opening.format_of(TINY_R1) == "safetensors"
    assert opening.unavailable("safetensors") is None
    with opening.open_file(TINY_R1, context_tokens=32) as runtime:
        assert isinstance(runtime, TransformersModel)
        assert (runtime.name, runtime.path) == ("tiny-r1", TINY_R1)
        assert runtime.logits([1, 2]).shape == (2, runtime.vocab_size)


def test_the_device_reaches_the_runtime(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeFailureError, match="no NVIDIA GPU"):
        opening.open_file(TINY_R1, context_tokens=32, device="cuda")


def test_a_gguf_runs_in_llama_cpp(tiny_gguf):
    with opening.open_file(tiny_gguf, context_tokens=32) as runtime:
        assert isinstance(runtime, LlamaCpp)
        assert runtime.name == "tiny-r1.gguf"


@pytest.mark.parametrize("name", ["only-config", "only-weights", "model.bin", "absent"])
def test_anything_else_is_refused(tmp_path, name):
    path = tmp_path / name
    if name.startswith("only"):
        path.mkdir()
        (path / ("config.json" if name == "only-config" else "model.safetensors")).touch()
    elif name == "model.bin":
        path.touch()
    with pytest.raises(ArtifactError, match="runs by itself") as caught:
        opening.open_file(path, context_tokens=32)
    assert name in caught.value.problem
    assert "*.safetensors" in caught.value.allowed
